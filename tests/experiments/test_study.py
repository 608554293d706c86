"""The queue: its runs, their order and names, and that no two workers take the same run."""

import json
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from bytelm.callbacks import Cosine, Schedules
from bytelm.cli import build
from bytelm.errors import ConfigError
from bytelm.system.locks import lock

optuna = pytest.importorskip("optuna")

from bytelm.experiments.study import LOG, Study  # noqa: E402
from bytelm.experiments.task import LONGEST_NAME, Plan, Task, as_text  # noqa: E402

WORKERS = 3
LR = {"low": 1e-4, "high": 1e-2, "log": True}


@pytest.fixture
def study(folder):
    """Makes a study, with the runs of a list or a grid in its queue."""

    def study(*configs, name="s", storage=None, sampler_seed=0, **plan):
        made = Study(name, Plan(configs or ("tiny.yaml",), **plan), storage, sampler_seed)
        if made.plan.sampler == "grid":
            for task in made.missing():
                made.queue(task)
        return made

    return study


@pytest.fixture
def soon_used_up(monkeypatch):
    """A space counts as used up after fewer repeated draws: each draw is written to disk.

    With any number of seeds except one, the last run is a draw, not the one that it would queue.
    """
    monkeypatch.setattr("bytelm.experiments.study.MOST_REPEATS", 31)


def take(study, most=100, **options):
    """Takes runs, each of which ends at once, until none or this many are taken; returns their claims."""
    claims = []
    while len(claims) < most and (claim := study.next(**options)) is not None:
        study.close(claim.number, 2.0)
        claims.append(claim)
    return claims


def values(claims):
    """Returns the values of the only key that is searched."""
    return [value for claim in claims for _, value in claim.task.point]


def in_optuna():
    """Returns the study as loaded by Optuna."""
    journal = optuna.storages.journal.JournalFileBackend("runs/s/study.journal")  # Optuna's own reader
    return optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(journal))


# Runs to queue


@pytest.mark.parametrize(
    "named",
    [
        {"space": {"model.gpt.feedforward": ["my_parts.A", "GELU"]}},
        {"options": ["--trainer.callbacks+=my_parts.A"]},
        {"options": ["--lr_schedule", "my_parts.A"]},
    ],
)
def test_a_change_of_own_code_is_another_run(study, named):
    Path("my_parts.py").write_text("A = 1")
    take(study(**named))
    assert not take(study(**named))
    Path("my_parts.py").write_text("A = 2")
    (claim,) = take(study(**named))  # of a grid, only the run that uses it
    assert "GELU" not in claim.experiment


@pytest.mark.parametrize(
    "named",
    [
        {"space": {"config": ["more.yaml", "{seed_everything: 2}"]}},
        {"options": ["--config", "more.yaml"]},
        {"options": ["--lr", "1", "-c", "more.yaml"]},
        {"options": ["--config=more.yaml"]},
    ],
)
def test_a_change_of_a_config_that_a_space_or_an_option_names_is_another_run(study, named):
    Path("its_base.yaml").write_text("seed_everything: 3\n")
    Path("more.yaml").write_text("base: its_base.yaml\n")
    take(study(**named))
    assert not take(study(**named))
    for file, text in (("its_base.yaml", "seed_everything: 4\n"), ("more.yaml", "base: its_base.yaml\nlr: 1\n")):
        Path(file).write_text(text)
        (claim,) = take(study(**named))  # of a space, only the run that uses it
        assert "seed_everything" not in claim.experiment


def test_a_later_option_of_a_point_replaces_no_earlier_one():
    point = (("a.b.lr", "0.1"), ("a.b", "Adam"), ("seed", "1"), ("config", "more.yaml"))
    assert Task("tiny.yaml", "", ("--x", "1"), 7, point).fit_options == [
        *("--config", "tiny.yaml", "--x", "1", "--config", "more.yaml"),
        *("--a.b", "Adam", "--seed", "1", "--a.b.lr", "0.1", "--seed_everything", "7"),
    ]


def test_everything_is_run_once_before_anything_is_run_again(study):
    Path("other.yaml").write_text("seed_everything: 3\n")
    queue = study("tiny.yaml", "other.yaml", seeds=(2, 1), space={"model.lr": [0.1, 1], "b": ["x", "y"]})
    assert [(claim.task.seed, claim.task.config, claim.task.point) for claim in take(queue)] == [
        (seed, config, (("model.lr", lr), ("b", b)))
        for seed in (2, 1)
        for config in ("tiny.yaml", "other.yaml")
        for lr in ("0.1", "1")
        for b in ("x", "y")
    ]


def test_a_task_is_the_options_of_fit(study):
    queue = study(options=("--trainer.devices", "1"), seeds=(7,), space={"model.gpt.d_ff": [48]})
    (claim,) = take(queue)
    assert claim.task.fit_options == [
        *("--config", "tiny.yaml"),
        *("--trainer.devices", "1"),
        *("--model.gpt.d_ff", "48"),
        *("--seed_everything", "7"),
    ]
    assert Task.load(claim.task.dump()) == claim.task


def test_without_a_seed_the_configs_own_counts(study):
    (claim,) = take(study())
    assert claim.task.fit_options == ["--config", "tiny.yaml"]


def test_queued_runs_are_not_missing(study):
    assert study(seeds=(1, 2)).missing() == []
    more = Study("s", Plan(["tiny.yaml"], seeds=(1, 2, 3)))
    assert [task.seed for task in more.missing()] == [3]
    assert Study("another", more.plan).missing() == more.plan.grid()


def test_duplicates_are_run_once(study):
    queue = study("tiny.yaml", "tiny.yaml", seeds=(1, 1), space={"a": [2, 2]})
    assert len(take(queue)) == 1


def test_dropped_runs_are_missing_again(study):
    queue = study(seeds=(1, 2))
    dropped = queue.next()
    queue.drop(dropped.number)
    assert queue.missing() == [dropped.task]


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        (lambda text: text.replace("n_layers: 1", "n_layers: 2"), True),
        (lambda text: text + "seed_everything: 3\n", True),
        (lambda text: "# what this is\n" + text + "\n\n", False),
        (lambda text: yaml.safe_dump(yaml.safe_load(text)), False),  # other order, other style
    ],
    ids=["value", "key", "comment", "style"],
)
def test_a_config_has_its_stated_values(study, change, is_another):
    take(study())
    config = Path("tiny.yaml")
    config.write_text(change(config.read_text()))
    assert len(take(study())) == is_another


def test_other_options_make_another_run(study):
    take(study())
    assert len(take(study(options=("--model.gpt.n_layers", "2")))) == 1
    assert take(study(options=("--model.gpt.n_layers", "2"))) == []


def test_a_config_that_cannot_be_read_can_be_queued_for_the_check_to_reject(study):
    Path("bad.yaml").write_text("a: [1\n")
    Path("latin.yaml").write_bytes(b"a: \xff\n")
    assert len(study("bad.yaml", "latin.yaml", "nowhere.yaml").plan.grid()) == 3


# Values on the command line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (0.001, "0.001"),
        (True, "true"),
        (None, "null"),
        ("5%", "5%"),
        ("Cosine", "Cosine"),
        ([1, 2], "[1, 2]"),
        ({"class_path": "Cosine", "init_args": {"warmup": "5%"}}, "{class_path: Cosine, init_args: {warmup: 5%}}"),
    ],
)
def test_a_value_is_written_as_the_command_line_takes_it(value, text):
    assert as_text(value) == text


@pytest.mark.parametrize("value", [1e-5, 123456789.25, {"class_path": "a" * 60, "init_args": {"b" * 40: "c d" * 20}}])
def test_no_value_is_changed_by_being_written(value):
    assert yaml.safe_load(as_text(value)) == value


def test_a_class_with_options_is_one_value_of_a_list(study):
    space = {"lr_schedule": [{"class_path": "Cosine", "init_args": {"warmup": "5%"}}], "model.gpt.d_ff": [48]}
    (claim,) = take(study(seeds=(7,), space=space))
    cli = build(claim.task.fit_options, run=False)
    schedule = Schedules.of(cli.trainer).schedules["lr"]
    assert isinstance(schedule, Cosine)
    assert str(schedule.warmup) == "5%"
    assert cli.model.gpt.blocks[0].feedforward.up.out_features == 48
    assert cli.plain_config["seed_everything"] == 7


# Names


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (Task("configs/a/00-base.yaml", ""), "00-base"),
        (Task("base.yaml", "", seed=7), "base,seed=7"),
        (Task("base.yaml", "", ("--a", "b"), 7), "base,seed=7"),
        (
            Task("base.yaml", "", (), 1, (("model.optimizer.lr", "1e-3"), ("lr_schedule", "Cosine"))),
            "base,lr=1e-3,lr_schedule=Cosine,seed=1",
        ),
        (
            Task("base.yaml", "", point=(("lr_schedule", "{class_path: Cosine, init_args: {warmup: 5%}}"),)),
            "base,lr_schedule=_class_path_Cosine,_init_args_warmup_5_",
        ),
        (Task("my base.yaml", "", point=(("data.path", "../../else where"),)), "my_base,path=.._.._else_where"),
    ],
)
def test_a_name_contains_config_point_and_seed(task, name):
    assert task.name == name


def test_a_name_is_short_enough_for_a_folder():
    task = Task("base.yaml", "", point=(("a", "x" * 500),), seed=1)
    assert task.name == "base,a=" + "x" * (LONGEST_NAME - 14) + ",seed=1"
    assert len(task.name) == LONGEST_NAME


def test_tasks_of_the_same_name_are_numbered_the_same_for_all_workers(study):
    for name in ("a", "b", "c"):
        Path(name).mkdir()
        Path(name, "tiny.yaml").write_text(f"experiment: {name}\n")
    configs = [f"{name}/tiny.yaml" for name in ("a", "b", "c")]
    one, two = study(*configs), study(*configs)
    names = []
    for _ in configs:
        claim = one.next()
        assert two.next() == claim  # its process is gone, and the other worker resumes it
        names.append(claim.experiment)
        two.close(claim.number)
    assert names == ["s/tiny", "s/tiny,2", "s/tiny,3"]


def test_truncated_names_remain_distinct(study):
    queue = study(space={"a": ["x" * 200 + end for end in "yz"]})
    first, second = [claim.experiment for claim in take(queue)]
    assert second == first + ",2"


def test_a_task_never_gets_the_folder_of_another(study):
    # It was rejected once, another run of its name was made in the meantime, and now it is queued again.
    config = Path("tiny.yaml")
    text = config.read_text()
    rejected = study()
    rejected.drop(rejected.next().number)
    config.write_text(text + "seed_everything: 3\n")
    (other,) = take(study())
    config.write_text(text)
    (again,) = take(study())
    assert other.task.name == again.task.name
    assert other.experiment != again.experiment


# Claims


def log(claim):
    return Path("runs", claim.experiment, LOG)


def test_a_run_is_offered_again_when_its_process_is_gone_and_not_before(study, at_work):
    one, two = study(seeds=(1, 2)), study(seeds=(1, 2))
    claim = one.next()
    process = at_work(log(claim))
    other = two.next()
    assert (claim.task.seed, other.task.seed) == (1, 2)
    at_work(log(other))
    assert one.next() is None
    assert two.next() is None
    assert one.queued == 2
    process.kill()
    process.wait()
    assert two.next() == claim


def test_only_a_run_that_a_process_works_on_makes_a_study_busy_and_only_for_those_who_ask_for_it(study, at_work):
    queue = study(seeds=(1, 2))
    claim = queue.next()
    (other,) = [task for task in queue.plan.grid() if task != claim.task]
    assert not queue.is_busy()
    at_work(log(claim))
    assert queue.is_busy()
    assert queue.is_busy([claim.task])
    assert not queue.is_busy([other])
    assert len(queue.open()) == 2
    queue.close(claim.number, 2.0)
    assert (queue.is_busy(), queue.open([claim.task]), len(queue.open([other]))) == (False, [], 1)


def test_a_run_that_was_cut_comes_before_those_that_wait(study):
    queue = study(seeds=(1, 2))
    cut = queue.next()
    log(cut).parent.mkdir(parents=True)
    log(cut).touch()
    assert queue.next() == cut
    queue.close(cut.number, 2.0)
    assert queue.next().task.seed == 2


def test_a_run_that_has_ended_is_never_offered_again(study):
    queue = study(seeds=(1, 2))
    queue.close(queue.next().number, 2.0)
    queue.close(queue.next().number)  # failed
    assert queue.next() is None
    assert study(seeds=(1, 2)).next() is None
    assert queue.queued == 0


def test_a_run_that_was_one_too_many_is_not_taken_for_one_that_was_cut(study, at_work, monkeypatch):
    one, two, three = (study(seeds=(1, 2, 3)) for _ in range(3))
    ask, drop, offered = one._study.ask, one.drop, []

    def ask_too_late():
        at_work(log(two.next(max_runs=1)))
        return ask()

    def drop_late(number):
        offered.append(three.next(max_runs=1))
        drop(number)

    monkeypatch.setattr(one._study, "ask", ask_too_late)
    monkeypatch.setattr(one, "drop", drop_late)
    assert one.next(max_runs=1) is None
    assert offered == [None]


def test_a_run_that_was_queued_twice_is_not_taken_for_one_that_was_cut(study, monkeypatch):
    one, two = study(), study()
    one.queue(one.plan.grid()[0])  # as by a worker that started at the same time
    one.close(one.next().number, 2.0)
    drop, offered = one.drop, []

    def drop_late(number):
        offered.append(two.next())
        drop(number)

    monkeypatch.setattr(one, "drop", drop_late)
    assert one.next() is None
    assert offered == [None]


def work(number, plan, max_runs, barrier):
    """A worker whose runs last until no worker finds more to do; records the runs that it takes."""
    study = Study("s", plan)
    missing = study.missing() if plan.sampler == "grid" else []
    barrier.wait(60)  # all have seen the same queue before any of them adds to it
    for task in missing:
        study.queue(task)
    taken = {}
    while (claim := study.next(max_runs)) is not None:
        log(claim).parent.mkdir(parents=True, exist_ok=True)
        file = open(log(claim), "ab")  # noqa: SIM115 (held until the end, as a run's process does)
        if lock(file.fileno()):
            taken[file] = claim.task
        else:
            file.close()  # another worker resumed it first
    barrier.wait(60)
    Path(f"taken-{number}").write_text(json.dumps([task.dump() for task in taken.values()]))


@pytest.fixture(params=["threads", "processes"])
def workers(request, folder):
    """Starts workers on the same queue at the same time; returns the tasks that they took, all together."""

    def workers(plan, max_runs=None):
        if request.param == "threads":
            barrier = threading.Barrier(WORKERS)
            with ThreadPoolExecutor(WORKERS) as pool:
                list(pool.map(lambda number: work(number, plan, max_runs, barrier), range(WORKERS)))
        else:
            fork = multiprocessing.get_context("fork")
            barrier = fork.Barrier(WORKERS)
            processes = [fork.Process(target=work, args=(n, plan, max_runs, barrier)) for n in range(WORKERS)]
            for process in processes:
                process.start()
            for process in processes:
                process.join(120)
                assert process.exitcode == 0
        texts = [text for path in folder.glob("taken-*") for text in json.loads(path.read_text())]
        return [Task.load(text) for text in texts]

    return workers


def test_workers_that_queue_the_same_runs_at_once_take_each_of_them_once(workers):
    tasks = workers(Plan(["tiny.yaml"], seeds=tuple(range(6))))
    assert sorted(task.seed for task in tasks) == list(range(6))


def test_workers_keep_to_the_number_of_runs_together(study, workers):
    queue = study(seeds=tuple(range(8)))
    tasks = workers(queue.plan, max_runs=4)
    assert len(set(tasks)) == len(tasks) == 4
    assert queue.queued == 8  # four of them are active


def test_workers_that_draw_keep_to_the_number_of_runs_together(workers):
    tasks = workers(Plan(["tiny.yaml"], space={"lr": LR}, sampler="random"), max_runs=4)
    assert len(set(tasks)) == len(tasks) == 4


# The number of runs


def test_all_runs_count_and_other_folders_do_not(study, at_work):
    queue = study(seeds=range(8))
    queue.close(queue.next(max_runs=3).number, 2.0)
    queue.close(queue.next(max_runs=3).number)  # failed
    queue.drop(queue.next(max_runs=3).number)
    at_work(log(queue.next(max_runs=3)))  # active
    assert queue.next(max_runs=3) is None
    assert queue.next(max_runs=4).task.seed == 4


def test_a_run_that_was_cut_continues_though_there_may_be_no_more_runs(study):
    queue = study(seeds=(1, 2))
    cut = queue.next(max_runs=1)
    assert queue.next(max_runs=1) == cut


# Search


def test_a_range_on_a_logarithmic_scale_is_drawn_from_evenly(study):
    numbers = list(map(float, values(take(study(space={"lr": LR}, sampler="random"), most=60))))
    assert len(set(numbers)) == 60
    assert all(1e-4 <= number <= 1e-2 for number in numbers)
    assert 15 <= sum(number < 1e-3 for number in numbers) <= 45


@pytest.mark.parametrize(
    ("limits", "possible"),
    [
        ({"low": 1, "high": 4}, {"1", "2", "3", "4"}),
        ({"low": 2, "high": 10, "step": 4}, {"2", "6", "10"}),
        ({"low": 0.1, "high": 0.5, "step": 0.1}, {"0.1", "0.2", "0.3", "0.4", "0.5"}),
        ({"low": 0, "high": 1, "step": 0.25}, {"0.0", "0.25", "0.5", "0.75", "1.0"}),
        ({"low": 20000, "high": 20001, "step": 0.5}, {"20000.0", "20000.5", "20001.0"}),
        (["x", "y", 3], {"x", "y", "3"}),
    ],
    ids=str,
)
@pytest.mark.usefixtures("soon_used_up")
def test_all_that_is_possible_is_drawn_once_and_nothing_else(study, limits, possible):
    drawn = values(take(study(space={"a": limits}, sampler="random")))
    assert sorted(drawn) == sorted(possible)


@pytest.mark.usefixtures("soon_used_up")
def test_a_list_of_numbers_is_drawn_from_by_places_in_ascending_order(study):
    drawn = values(take(study(space={"a": [0.5, 16, 2, 2]}, sampler="random")))
    assert sorted(drawn) == ["0.5", "16", "2"]
    places = [
        (trial.params["a"], json.loads(trial.user_attrs["task"])["point"][0][1])
        for trial in in_optuna().trials
        if "task" in trial.user_attrs
    ]
    assert set(places) == {(0, "0.5"), (1, "2"), (2, "16")}


def test_whole_numbers_are_drawn_from_a_range_of_whole_numbers(study):
    limits = {"low": 16, "high": 1024, "log": True}
    drawn = values(take(study(space={"model.gpt.d_ff": limits}, sampler="random"), most=20))
    assert all(16 <= int(text) <= 1024 for text in drawn)


@pytest.mark.parametrize("limits", [{"low": 0.12341, "high": 0.12344}, {"low": 0.99, "high": 0.99999}], ids=str)
def test_no_draw_is_rounded_out_of_its_range(study, limits):
    drawn = values(take(study(space={"a": limits}, sampler="random"), most=30))
    assert len(drawn) == 30
    assert all(limits["low"] <= float(text) <= limits["high"] for text in drawn)


def test_several_keys_and_configs_are_drawn_together(study):
    Path("other.yaml").write_text("seed_everything: 3\n")
    space = {"lr": LR, "lr_schedule": ["Constant", {"class_path": "Cosine", "init_args": {"warmup": "5%"}}]}
    tasks = [claim.task for claim in take(study("tiny.yaml", "other.yaml", space=space, sampler="random"), most=20)]
    assert {task.config for task in tasks} == {"tiny.yaml", "other.yaml"}
    assert {dict(task.point)["lr_schedule"] for task in tasks} == {
        "Constant",
        "{class_path: Cosine, init_args: {warmup: 5%}}",
    }
    assert all([key for key, _ in task.point] == ["lr", "lr_schedule"] for task in tasks)


def test_every_point_is_run_with_all_seeds_before_the_next_is_drawn(study):
    tasks = [claim.task for claim in take(study(seeds=(1, 2), space={"lr": LR}, sampler="random"), most=6)]
    assert [task.seed for task in tasks] == [1, 2] * 3
    assert [task.point for task in tasks[::2]] == [task.point for task in tasks[1::2]]
    assert len({task.point for task in tasks}) == 3


def test_the_same_seed_draws_the_same(study):
    one, same, other = (
        values(take(study(name=name, sampler_seed=seed, space={"lr": LR}, sampler="random"), most=5))
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one == same
    assert not set(one) & set(other)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_continued_search_draws_no_point_twice(study, sampler):
    drawn = [values(take(study(space={"lr": LR}, sampler=sampler), most=3)) for _ in range(2)]
    assert len({*drawn[0], *drawn[1]}) == 6
    assert len(in_optuna().trials) == 6  # no draw was repeated


@pytest.mark.parametrize("seeds", [(None,), (1, 2), (1, 2, 3)], ids=str)
@pytest.mark.usefixtures("soon_used_up")
def test_a_space_that_is_used_up_ends_the_search(study, seeds):
    queue = study(seeds=seeds, space={"a": ["x", "y"]}, sampler="random")
    tasks = [claim.task for claim in take(queue)]
    assert len(set(tasks)) == len(tasks) == 2 * len(seeds)
    assert queue.queued == 0


@pytest.mark.usefixtures("soon_used_up")
def test_a_point_that_was_rejected_is_not_drawn_again(study):
    queue = study(seeds=(1, 2), space={"a": ["x", "y"]}, sampler="random")
    rejected = []
    while len(rejected) < 20 and (claim := queue.next(max_runs=3)) is not None:
        queue.drop(claim.number)
        rejected.append(claim.task)
    assert len(set(rejected)) == len(rejected) == 4


def test_other_seeds_of_a_point_are_run_also_if_its_draw_was_cut(study, monkeypatch):
    queue = study(seeds=(1, 2), space={"a": ["x"]}, sampler="random")
    with monkeypatch.context() as patch:
        patch.setattr(queue, "queue", lambda task: pytest.fail("killed here"))
        with pytest.raises(pytest.fail.Exception):
            queue.next()
    assert sorted(claim.task.seed for claim in take(study(seeds=(1, 2), space={"a": ["x"]}, sampler="random"))) == [
        1,
        2,
    ]


def test_scores_and_failures_are_in_the_study_for_a_sampler_to_learn_from(study):
    queue = study(space={"lr": LR}, sampler="tpe")
    scored = queue.next()
    queue.close(scored.number, 2.5)
    queue.close(queue.next().number)
    one, two = in_optuna().trials
    assert (one.state.name, one.value) == ("COMPLETE", 2.5)
    assert one.params["lr"] == pytest.approx(float(scored.task.point[0][1]), rel=1e-3)
    assert (two.state.name, two.value) == ("FAIL", None)


def test_tpe_learns_where_the_low_scores_are(study):
    queue = study(space={"a": {"low": 0.0, "high": 1.0}}, sampler="tpe")
    distances = []
    for _ in range(30):
        claim = queue.next()
        distances.append(abs(float(claim.task.point[0][1]) - 0.3))
        queue.close(claim.number, distances[-1])
    assert sum(distances[-10:]) < sum(distances[:10]) / 2


# Storage


@pytest.mark.parametrize("storage", ["sqlite:///queue.db", "queue.journal"])
def test_a_queue_can_be_kept_elsewhere(study, at_work, storage):
    one, two = (study(storage=storage, seeds=(1, 2)) for _ in range(2))
    claim = one.next()
    at_work(log(claim))
    other = two.next()
    at_work(log(other))
    assert [claim.experiment, other.experiment] == ["s/tiny,seed=1", "s/tiny,seed=2"]
    assert two.next() is None
    one.close(claim.number, 2.0)
    two.drop(other.number)
    assert one.queued == 0
    assert [task.seed for task in one.missing()] == [2]
    assert not Path("runs/s/study.journal").exists()


def test_studies_share_a_storage_without_mixing(study):
    one, two = (study(name=name, storage="queue.journal", seeds=(1, 2)) for name in ("one", "two"))
    assert [claim.experiment for claim in take(one)] == ["one/tiny,seed=1", "one/tiny,seed=2"]
    assert len(take(two)) == 2


# Rejected studies


@pytest.mark.parametrize(
    ("space", "accepted"),
    [
        (3, "a list of values, or {low: …, high: …}"),
        ("x", "a list of values, or {low: …, high: …}"),
        ([], "a list of values, or {low: …, high: …}"),
        ({}, "{low: 1e-4, high: 1e-2}, optionally with log: true or a step"),
        ({"low": 1}, "{low: 1e-4, high: 1e-2}"),
        ({"low": 1, "high": 2, "lgo": True}, "{low: 1e-4, high: 1e-2}"),
        ({"low": "1", "high": 2}, "{low: 1e-4, high: 1e-2}"),
        ({"low": False, "high": True}, "{low: 1e-4, high: 1e-2}"),
        ({"low": 2, "high": 2}, "a low that is below high"),
        ({"low": 3, "high": 2}, "a low that is below high"),
        ({"low": 0, "high": 1, "log": True}, "a low above 0"),
        ({"low": -1.0, "high": 1.0, "log": True}, "a low above 0"),
        ({"low": 1, "high": 2, "log": True, "step": 1}, "no step"),
        ({"low": 1, "high": 2, "step": 0}, "step"),
        ({"low": 1, "high": 2, "step": -0.5}, "step"),
        ({"low": 1, "high": 2, "step": "small"}, "step"),
        ({"low": 1, "high": 2, "log": "maybe"}, "log"),
        ({"low": 0.0, "high": float("inf")}, "{low: 1e-4, high: 1e-2}"),
        ({"low": float("nan"), "high": 1.0}, "{low: 1e-4, high: 1e-2}"),
    ],
    ids=str,
)
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_space_that_cannot_be_searched_is_rejected_by_key_and_value(space, accepted, sampler):
    with pytest.raises(ConfigError) as rejected:
        Plan(["tiny.yaml"], space={"ok": [1], "model.lr": space}, sampler=sampler)
    message = str(rejected.value)
    assert message.startswith(f"space.model.lr: {space!r} cannot be used; ")
    assert accepted in message.partition("cannot be used; ")[2]


def test_a_grid_takes_lists_only():
    with pytest.raises(ConfigError, match=r"space.lr: .* a grid needs a list .* needs --sampler random, tpe or gp"):
        Plan(["tiny.yaml"], space={"lr": LR})


@pytest.mark.parametrize("space", [None, {}], ids=str)
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_needs_a_space(sampler, space):
    with pytest.raises(
        ConfigError, match=f"sampler: '{sampler}' cannot be used; it needs a space .* accepted without one: grid"
    ):
        Plan(["tiny.yaml"], space=space, sampler=sampler)


@pytest.mark.parametrize(
    ("options", "plan", "said"),
    [
        (["--lr", "1"], {"space": {"lr": [1, 2]}}, "lr: '1' cannot be used; it has no effect after --: the space has"),
        (["--x", "1", "--lr=1"], {"space": {"lr": [1, 2]}}, "lr: '1' cannot be used; it has no effect after --: the s"),
        (["--seed_everything", "3"], {"seeds": (1, 2)}, "seed_everything: '3' cannot be used; .* have the seeds of --"),
        (
            [],
            {"seeds": (1,), "space": {"seed_everything": [1]}},
            r"space.seed_everything: \[1\] cannot be used; it has",
        ),
        (["--experiment", "e"], {}, "experiment: 'e' cannot be used; .*; accepted: --study"),
        ([], {"space": {"experiment": ["a"]}}, r"space.experiment: \['a'\] cannot be used; .*; accepted: --study"),
        (["--ckpt_path", "last"], {}, "ckpt_path: 'last' cannot be used; .*; accepted: init_from"),
        (["--print_config"], {}, "print_config: '' cannot be used; .* it is an option of `fit` alone"),
    ],
    ids=str,
)
def test_options_of_runs_that_the_command_sets_are_rejected(options, plan, said):
    with pytest.raises(ConfigError, match=said):
        Plan(["tiny.yaml"], options, **plan)


def test_other_options_of_runs_are_accepted():
    Plan(["tiny.yaml"], ["--lr.of", "1", "--seed_everything", "3", "lr"], space={"lr": [1, 2]})
