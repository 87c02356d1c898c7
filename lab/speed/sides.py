"""The two sides of every comparison, each as steps: first it is ready, then step after step."""

from collections.abc import Iterator

from lab.speed.job import Job


def side(job: Job) -> Iterator[None]:
    """The job's steps: the first answer says that all is loaded, every further one is a step."""
    if job.side == "plain":
        from lab.speed import plain

        return plain.painted(job) if job.method == "generation" else plain.learned(job)
    from lab.speed import ours

    return ours.painted(job) if job.method == "generation" else ours.learned(job)
