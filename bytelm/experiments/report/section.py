"""The part of the page about one contest: its tables, in Markdown, and its pictures."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from matplotlib.figure import Figure
from scipy import stats

from bytelm.config.own_code import changed
from bytelm.experiments.comparison import Experiment, Noise
from bytelm.experiments.report import plots
from bytelm.experiments.report.cells import (
    change_text,
    commits_text,
    count_text,
    device_text,
    params_text,
    reason_of,
    score_text,
    versions_text,
)
from bytelm.experiments.report.contests import Layout, matching
from bytelm.experiments.report.curves import Curves, read_curves
from bytelm.experiments.report.text import code, plain, table
from bytelm.runs.ledger import best_of
from bytelm.runs.record import wall_time
from bytelm.runs.score import Score
from bytelm.system.invocation import typed_name
from bytelm.units import clock

MOST_CURVES = 8
UNEQUAL = 1.05  # ratio of tokens seen by two runs from which a picture over tokens differs from one over time

LEGEND = (
    "The best come first.{spread} keep: it was the best of the contest when it ended; discard: it was not. Changes are "
    "relative to the earlier experiment that differs least."
)
SPREAD = " ± is the standard deviation over seeds, with the number of runs in parentheses."


class Section:
    """The part of the page about experiments that compete with each other.

    Args:
        experiments: In the order of their numbers.
        layout: Where they are shown.
        score: The score that ranks them.
        prefix: Prefix of its pictures' names.
        measured: Experiments from whose seeds the noise is measured; default: these experiments.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        layout: Layout,
        score: Score,
        prefix: str = "",
        measured: Sequence[Experiment] | None = None,
    ) -> None:
        self.experiments = experiments
        self.runs = [run for experiment in experiments for run in experiment.runs]
        self.scored = sorted((e for e in experiments if e.scores), key=lambda e: e.score or 0.0)
        self.score = score
        self.prefix = prefix
        self.reported_by = layout.reported_by
        self.reported: dict[Experiment, Mapping[str, float]] = {}
        for pattern, figures in layout.reported.items():
            self.reported |= dict.fromkeys(matching(experiments, [pattern]), figures)
        self.phases = layout.arrange(experiments)
        self.noise = Noise(self.phases, None if measured is None else layout.arrange(measured))
        self.effects: dict[str, tuple[Experiment, Experiment]] = {}
        for statement, names in layout.effects.items():
            better, worse = (matching(experiments, [name]) for name in names)
            if better and worse:
                self.effects[statement] = better[0], worse[0]
        self._shown = layout.curves

    @property
    def best(self) -> Experiment | None:
        """The experiment with the lowest mean score."""
        return self.scored[0] if self.scored else None

    @cached_property
    def curves(self) -> list[Curves]:
        """Curves of the experiments whose training is shown: of each, the first run with a score, if there is one."""
        if self._shown is not None:
            shown = matching(self.experiments, self._shown)
        elif len(self.experiments) <= MOST_CURVES:
            shown = list(self.experiments)
        else:
            best = [
                min((e for e in part if e.scores), key=lambda e: e.score or 0.0, default=None)
                for part in self.phases.values()
            ]
            shown = list(dict.fromkeys([self.experiments[0], *self.scored[:1], *filter(None, best)]))[:MOST_CURVES]
        runs = [next((run for run in e.runs if run.score is not None), e.runs[0]) for e in shown]
        curves = [read_curves(run, self.score) for run in runs]
        return [one for one in curves if len(one.loss.values) or len(one.scores.values)]

    @cached_property
    def pictures(self) -> dict[str, Callable[[], Figure]]:
        """The functions that draw the pictures, by file name; without pictures that would be empty."""
        drawn: dict[str, Callable[[], Figure]] = {}
        if len(self.scored) > 1:
            drawn["by_name.svg"] = partial(plots.by_name, self.phases, self.score)
            drawn["in_order.svg"] = partial(plots.in_order, self.phases, self.score)
            if len({e.figure("num_params_M") for e in self.scored} - {None}) > 1:
                drawn["by_parameters.svg"] = partial(plots.by_parameters, self.phases, self.score)
        if self.curves:
            drawn["by_time.svg"] = partial(plots.training, self.curves, self.score, "seconds")
            tokens = [seen for one in self.curves if (seen := one.run.record.get("tokens_seen"))]
            if tokens and max(tokens) > UNEQUAL * min(tokens):
                drawn["by_tokens.svg"] = partial(plots.training, self.curves, self.score, "tokens")
        return {f"{self.prefix}{name}": draw for name, draw in drawn.items()}

    @cached_property
    def charts(self) -> dict[str, dict[str, Any]]:
        """The data of the curves in its pictures, by file name (html.to_html)."""
        data = plots.chart(self.curves, self.score)
        over = {f"{self.prefix}by_time.svg": "seconds", f"{self.prefix}by_tokens.svg": "tokens"}
        name = f"{self.prefix}curves"
        return {file: {"name": name, "data": data, "over": over[file]} for file in over if file in self.pictures}

    def markdown(self) -> str:
        """Returns its Markdown, with its pictures as links to files beside it."""
        parts = [self._summary(), *self._unranked(), "## Best configuration", self._best_text()]
        parts += self._picture("by_name.svg", "Scores of all experiments, the best first")
        parts += self._tables()
        if self.effects:
            parts += ["## Effects", self._effects_table()]
        if len(self.scored) > 1:
            parts += ["## What differs by more than noise", self._noise_text()]
        parts += self._picture(
            "in_order.svg", "Scores in the order of the experiments, with the best so far", "Progress"
        )
        parts += self._picture("by_parameters.svg", "Scores against the number of parameters", "Size")
        parts += self._picture("by_time.svg", "Loss against seconds of training", "Training by the clock")
        parts += self._picture("by_tokens.svg", "Loss against tokens seen", "Training by tokens")
        if failures := self.failures():
            parts += ["## Runs without a score", failures]
        return "\n\n".join(parts)

    def _picture(self, name: str, text: str, heading: str = "") -> list[str]:
        if self.prefix + name not in self.pictures:
            return []
        return [*([f"## {heading}"] if heading else []), f"![{text}]({self.prefix}{name})"]

    def _summary(self) -> str:
        counts = Counter(run.status for run in self.runs)
        records = [run.record for run in self.runs if run.record.get("versions")]
        total = clock(sum(wall_time(run.record) for run in self.runs))
        times = [run.record[key] for run in self.runs for key in ("started_at", "ended_at") if run.record.get(key)]

        def all_of(values: Iterable[Any], between: str = ", ") -> str:
            return between.join(dict.fromkeys(str(value) for value in values if value)) or "not known"

        rows = {
            "runs": f"{len(self.runs)} ({', '.join(f'{n} {status}' for status, n in counts.items())}), {total} in all",
            "when": f"{min(times)[:16].replace('T', ' ')} to {max(times)[:16].replace('T', ' ')} UTC" if times else "",
            "budget": all_of(run.budget for run in self.runs),
            "corpus": all_of((record.get("corpus") or {}).get("name") for record in records),
            "seeds": all_of(sorted({str(seed) for run in self.runs if (seed := run.record.get("seed")) is not None})),
            "device": all_of(map(device_text, records)),
            "versions": all_of(map(versions_text, records), "; "),
            "commits": commits_text(self.runs),
        }
        return table(["", ""], [[key, plain(value)] for key, value in rows.items() if value])

    def _unranked(self) -> list[str]:
        names = dict.fromkeys(run.experiment for run in self.runs if run.has_loss_alone and run.score is None)
        if not names:
            return []
        return [
            f"Not ranked: {plain(', '.join(names))}. The number of bytes that their tokens stand for is not known, so "
            "they have a val_loss only, and nats per token cannot be compared with bits per byte."
        ]

    def _best_text(self) -> str:
        best = self.best
        if best is None or best.score is None:
            return "No run was completed."
        first = next(e for e in self.experiments if e.scores)
        assert first.score is not None
        steps, tokens_per_sec = (count_text(best.figure(key)) for key in ("total_steps", "tokens_per_sec"))
        text = (
            f"**{plain(best.name)}**: {self.score.name} {score_text(best)}, {steps} steps, "
            f"{params_text(best)} parameters, {tokens_per_sec} tokens/s."
        )
        if first is not best:
            less = 100 * (1 - best.score / first.score)
            text += f" The score is {less:.1f} % less than that of the first, {plain(first.name)} ({first.score:.4f})."
        parts, chain, at = [text], [], best
        while at.origin is not None:
            changes = plain(", ".join(at.changes) or "no change of a setting")
            chain.append(f"* {changes} (from {plain(at.origin.name)})")
            at = at.origin
        if chain:
            parts += [f"The changes that led to it, beginning with {plain(at.name)}:", "\n".join(reversed(chain))]
        network = [key for key in best.settings if key.startswith("model.gpt.") and key.count(".") == 2]
        if network:
            shape = ", ".join(f"{key.rpartition('.')[2]} {best.settings[key]}" for key in network)
            parts.append(f"Its network: {plain(shape)}.")
        if (run := best_of(best.runs)) is not None:
            command = f"{typed_name()} fit --config {shlex.quote(f'{run.folder}/config.yaml')}"
            again = f"To train it again: {code(command)}"
            if files := changed(run.record.get("code") or {}):
                commit = (run.record.get("git") or {}).get("commit")
                of = f" (commit {commit[:7]})" if commit else ""
                again += f" with its own code{of}: {plain(', '.join(files))} is different now."
            parts.append(again)
        return "\n\n".join(parts)

    def _tables(self) -> list[str]:
        parts: list[str] = []
        has_spread = any(e.spread is not None for e in self.experiments)
        legend = LEGEND.format(spread=SPREAD if has_spread else "")
        for phase, members in self.phases.items():
            ranked = sorted(members, key=lambda e: (e.score is None, e.score or 0.0, e.number))
            parts += [f"## {plain(phase)}", self._table(ranked), *([] if parts else [legend])]
        return parts

    def _table(self, members: Sequence[Experiment]) -> str:
        columns: dict[str, Callable[[Experiment], str]] = {
            "Experiment": lambda e: plain(e.name),
            f"{self.score.head}>": lambda e: f"**{score_text(e)}**" if e is self.best else score_text(e),
            f"{self.reported_by}>": lambda e: self._told(e, self.score.name, "{:.3f}"),
            "Steps>": lambda e: count_text(e.figure("total_steps")),
            f"{self.reported_by} steps>": lambda e: self._told(e, "total_steps", "{:,.0f}"),
            "Params>": params_text,
            "Changes": lambda e: plain(change_text(e)),
            "Decision": lambda e: plain("keep" if e.kept else "discard" if e.scores else e.runs[-1].status),
        }
        if not any("total_steps" in self.reported.get(e, {}) for e in members):
            del columns[f"{self.reported_by} steps>"]
        if not any(self.score.name in self.reported.get(e, {}) for e in members):
            del columns[f"{self.reported_by}>"]
        return table(list(columns), [[cell(e) for cell in columns.values()] for e in members])

    def _told(self, experiment: Experiment, key: str, form: str) -> str:
        value = self.reported.get(experiment, {}).get(key)
        return "" if value is None else form.format(value)

    def _effects_table(self) -> str:
        reported, name = self.reported, self.score.name
        rows = []
        pairs = [(b, w) for b, w in self.effects.values() if b.scores and w.scores]
        beyond = dict(zip(pairs, self.noise.significant(pairs), strict=True)) if self.noise.spreads else {}
        for statement, (better, worse) in self.effects.items():
            row = [plain(statement), *(f"{plain(e.name)} ({score_text(e)})" for e in (better, worse))]
            if better.score is None or worse.score is None:
                rows.append([*row, "", "", "unknown: a run has no score"])
                continue
            gain = worse.score - better.score
            theirs = [reported.get(e, {}).get(name) for e in (worse, better)]
            told = f"{theirs[0] - theirs[1]:+.3f}" if theirs[0] is not None and theirs[1] is not None else ""
            verdict = "confirmed" if gain > 0 else "the opposite"
            if beyond and not beyond[better, worse]:
                verdict = "within noise"
            rows.append([*row, f"{gain:+.4f}", told, verdict])
        return table(["Statement", "Better", "Worse", "Gain here>", f"Gain {self.reported_by}>", "Result"], rows)

    def _noise_text(self) -> str:
        name = self.score.name
        parts: list[str] = []
        ranked = [(e.score, self.reported[e][name]) for e in self.scored if name in self.reported.get(e, {})]
        if len(ranked) > 2 and all(len(set(side)) > 1 for side in zip(*ranked, strict=True)):
            rank = float(stats.spearmanr(*zip(*ranked, strict=True)).statistic)
            parts.append(
                f"The order of the {len(ranked)} scores agrees with that of {plain(self.reported_by)} with a rank "
                f"correlation (Spearman's) of {rank:.2f}."
            )
        if not self.noise.spreads:
            parts.append(
                "No experiment was run with several seeds, so the effect of the seed alone is not known here, and no "
                f"difference can be judged. `{typed_name()} experiments … --seeds 42 1 2` runs each with three."
            )
            return "\n\n".join(parts)
        parts.append(f"By the seed alone, {name} varies with these standard deviations, each pooled over a phase:")
        deviations = self.noise.spreads.items()
        rows = [[plain(phase), f"{one.variance**0.5:.4f}", str(one.freedom)] for phase, one in deviations]
        parts.append(table(["Phase", "Deviation>", "Degrees of freedom>"], rows))
        if repeated := [e for e in self.scored if e.repeats_a_seed]:
            parts.append(
                f"Several runs of {plain(', '.join(e.name for e in repeated))} have the same seed. They differ only by "
                "the number of steps that the machine took in their time; the effect of the seed may be larger."
            )
        pairs = [(e, e.origin) for e in self.scored if e.origin is not None and e.origin.score is not None]
        rows = []
        for (e, origin), real in zip(pairs, self.noise.significant(pairs), strict=True):
            difference = (e.score or 0.0) - (origin.score or 0.0)
            verdict = ("better" if difference < 0 else "worse") if real else "within noise"
            interval = f"{difference:+.4f} ± {self.noise.margin(e, origin):.4f}"
            rows.append([plain(e.name), plain(origin.name), interval, verdict])
        if rows:
            parts.append(
                "Each experiment against the one that it was derived from. ± is here half the 95 % interval of the "
                "difference (Student's t). better and worse differ by more than noise: of all of these statements "
                "together, 5 % at most are expected to be wrong (Benjamini and Hochberg)."
            )
            parts.append(table(["Experiment", "From", "Difference>", "Result"], rows))
        best, *others = self.scored
        differ = self.noise.significant([(best, e) for e in others])
        equal = [e.name for e, differs in zip(others, differ, strict=True) if not differs]
        names = plain(", ".join(equal)) or "none"
        parts.append(f"Statistically indistinguishable from the best, {plain(best.name)}: {names}.")
        return "\n\n".join(parts)

    def failures(self) -> str:
        """Returns a table of the runs without a score; empty if there are none."""
        failed = [run for run in self.runs if run.score is None]
        rows = [[plain(run.experiment), plain(run.status), plain(reason_of(run)), code(run.folder)] for run in failed]
        return table(["Experiment", "Status", "Reason", "Folder"], rows) if rows else ""
