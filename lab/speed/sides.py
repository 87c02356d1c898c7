"""The two sides of a comparison as iterators: ready to start, then one step after another."""

from collections.abc import Iterator

from lab.speed.job import Job


def side(job: Job) -> Iterator[None]:
    """The steps of a job. The first item means that all is loaded, each further one is a step."""
    if job.side == "plain":
        from lab.speed import plain

        return (
            plain.generation_steps(job) if job.method == "generation" else plain.training_steps(job)
        )
    from lab.speed import ours

    return ours.generation_steps(job) if job.method == "generation" else ours.training_steps(job)
