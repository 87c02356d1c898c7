"""The web page: a queue of jobs on disk, a worker that runs them, and a guarded local server.

The folders of a workspace are the only state. The modules that the server imports need no torch;
`worker` and `tasks` run in a process of their own. The command line loads `commands` by name.
What a job does is in the packages below.
"""
