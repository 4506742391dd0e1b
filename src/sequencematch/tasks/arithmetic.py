"""Addition and subtraction in a base, with the distribution of the mathematics data set.

The data set is that of Saxton et al., "Analysing mathematical reasoning abilities of neural models" (ICLR 2019,
arXiv 1904.01557), published with its generator, mathematics_dataset 1.0.1 (Apache-2.0). This module follows the
generator's rule for `arithmetic__add_or_sub_in_base` and shares no code with it.
"""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ..errors import InputError
from .base import TextMistake, check_rate, check_whole_number

DIGITS = string.digits + string.ascii_lowercase
"""The digits of base 36; a base uses the first of them."""

MAX_ANSWER_LENGTH = 30
"""The generator drops questions with a longer answer (generate_settings.py)."""

_TRAIN_ENTROPY = (3.0, 10.0)
_MAX_ENTROPY = 18.0  # 10**18 / 2 is still an int64
_MAX_DIGITS = 12  # 36**12 is still an int64

_PUBLISHED = re.compile(r"In base ([0-9]{1,2}), what is (-?[0-9a-z]+) ([+-]) (-?[0-9a-z]+)\?\n?")
_COMPACT = re.compile(r"([0-9]{1,2}):(-?[0-9a-z]+)([+-])(-?[0-9a-z]+)=")


class Question(NamedTuple):
    """One question: `p + q` or `p - q`, both shown in `base`."""

    base: int
    p: int
    operator: str
    q: int

    @property
    def answer(self) -> str:
        """The result, in the question's base."""
        return in_base(self.p + self.q if self.operator == "+" else self.p - self.q, self.base)

    def text(self, compact: bool) -> str:
        """The prompt: the published question and a newline, or a few characters that say the same."""
        p, q = in_base(self.p, self.base), in_base(self.q, self.base)
        if compact:
            return f"{self.base}:{p}{self.operator}{q}="
        return f"In base {self.base}, what is {p} {self.operator} {q}?\n"

    @classmethod
    def parse(cls, prompt: str) -> Question:
        """Read either form of prompt. Raises InputError if it is neither."""
        match = _PUBLISHED.fullmatch(prompt) or _COMPACT.fullmatch(prompt)
        try:
            if match is None or not 2 <= int(match[1]) <= 36:
                raise ValueError
            base = int(match[1])
            return cls(base, int(match[2], base), match[3], int(match[4], base))
        except ValueError:
            raise InputError(
                f"{prompt!r} is not a prompt of the arithmetic task, such as "
                "'In base 6, what is 12 + -5?' and a newline, or '6:12+-5='"
            ) from None


@dataclass(frozen=True)
class AddOrSubInBase:
    """Questions such as `In base 6, what is 12 - -5?`, a newline, and the answer `21`.

    The distribution is the generator's (modules/arithmetic.py, sample/number.py): the base is uniform on 2 to 16,
    the two operations are equally likely, an entropy is drawn uniformly from a range and split between the
    operands, and each operand is a signed integer of that entropy. Questions whose answer is longer than 30
    characters are dropped. Letters stand for digits above 9, and a negative operand keeps its sign: `1 - -1`.

    With `digits` the operands are instead uniform over the integers of at most so many digits, negative ones
    included, in the question's base: questions for small models.

    Raises InputError if an option is out of its range, or both `digits` and `entropy` are set.
    """

    digits: int | None = None
    """At most so many digits in an operand (1 to 12); None for the data set's distribution."""
    bases: tuple[int, int] = (2, 16)
    """The smallest and the largest base, within 2 to 36."""
    entropy: tuple[float, float] = _TRAIN_ENTROPY
    """Range of the entropy in decimal digits (0 to 18): (3, 10) is the data set's training range, whose thirds are
    train-easy, train-medium and train-hard; (8, 8) is its `interpolate` test set."""
    compact: bool = False
    """Write the question as `6:12--5=` instead of in words."""

    name: ClassVar[str] = "arithmetic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bases", _pair("bases", self.bases))
        object.__setattr__(self, "entropy", _pair("entropy", self.entropy))
        for base in self.bases:
            check_whole_number("a base", base, 2, 36)
        if self.bases[0] > self.bases[1]:
            raise InputError(f"bases must be the smallest and the largest base, in that order, not {self.bases}")
        low, high = self.entropy
        if not (isinstance(low, int | float) and isinstance(high, int | float) and 0 <= low <= high <= _MAX_ENTROPY):
            raise InputError(f"entropy must be a range within 0 to {_MAX_ENTROPY:g}, not {self.entropy}")
        if not isinstance(self.compact, bool):
            raise InputError(f"compact must be true or false, not {self.compact!r}")
        if self.digits is not None:
            check_whole_number("digits", self.digits, 1, _MAX_DIGITS)
            if self.entropy != _TRAIN_ENTROPY:
                raise InputError("digits and entropy both say how large the operands are; set only one of them")

    @property
    def alphabet(self) -> str:
        """Every character that the texts use."""
        low, high = self.bases
        fixed = Question(2, 0, "+", 0).text(self.compact) + Question(2, 0, "-", 0).text(self.compact)
        numerals = "".join(str(base) for base in range(low, high + 1))
        return "".join(sorted({*fixed.replace("2", ""), *numerals, *DIGITS[:high]}))

    def sample(self, rng: np.random.Generator) -> tuple[str, str]:
        """Draw a question and its answer."""
        while True:
            question = self._question(rng)
            answer = question.answer
            if len(answer) <= MAX_ANSWER_LENGTH:
                return question.text(self.compact), answer

    def _question(self, rng: np.random.Generator) -> Question:
        base = int(rng.integers(*self.bases, endpoint=True))
        if self.digits is None:
            entropy_p, entropy_q = split_entropy(rng.uniform(*self.entropy), rng)
            p, q = signed_integer(entropy_p, rng), signed_integer(entropy_q, rng)
        else:
            largest = base**self.digits - 1
            p, q = (int(number) for number in rng.integers(-largest, largest, size=2, endpoint=True))
        return Question(base, p, "+-"[rng.integers(2)], q)

    def is_correct(self, prompt: str, completion: str) -> bool:
        """Whether `completion` is the answer, computed anew from the prompt, character by character.

        Both forms of prompt are understood. Raises InputError for any other.
        """
        return completion == Question.parse(prompt).answer

    def mistakes(self, prompt: str, completion: str, rate: float, rng: np.random.Generator) -> list[TextMistake]:
        """Before each digit of the completion, with probability `rate`, another digit of the base, drawn uniformly.

        It is after the task's own noise in the SequenceMatch paper (Cundy and Ermon 2024, arXiv 2306.05426). A minus
        sign is not a digit: no mistake comes before it. Raises InputError for a foreign prompt or a `rate`
        outside [0, 1].
        """
        check_rate(rate)
        digits = DIGITS[: Question.parse(prompt).base]
        mistakes = []
        for position, digit in enumerate(completion):
            if digit in digits and rng.random() < rate:
                others = digits.replace(digit, "")
                mistakes.append(TextMistake(position, others[rng.integers(len(others))]))
        return mistakes

    def group(self, prompt: str) -> str:
        """The question's base, as in `base 7`. Raises InputError for a foreign prompt."""
        return f"base {Question.parse(prompt).base}"


def in_base(number: int, base: int) -> str:
    """Show an integer in a base from 2 to 36: lowercase letters above 9, a minus sign for negative numbers."""
    return np.base_repr(number, base).lower()


def split_entropy(entropy: float, rng: np.random.Generator) -> tuple[float, float]:
    """Split a question's entropy over its two operands: a uniform share for the first, the rest for the second.

    Neither gets less than 1, so that the two can add up to more than `entropy`, by 1 at most where `entropy` is at
    least 2, and the second gets at most `entropy - 1` where the first can get it all (the generator's rule).
    """
    first = max(1.0, rng.uniform(0, entropy))
    return first, max(1.0, entropy - first)


def signed_integer(entropy: float, rng: np.random.Generator) -> int:
    """Draw an operand, uniform on -m to m with m = ceil(10**entropy / 2) (the generator's rule)."""
    largest = math.ceil(10**entropy / 2)
    return int(rng.integers(-largest, largest, endpoint=True))


def _pair(what: str, values: object) -> tuple:
    if not isinstance(values, list | tuple) or len(values) != 2:
        raise InputError(f"{what} must be two numbers, the smallest and the largest, not {values!r}")
    return tuple(values)
