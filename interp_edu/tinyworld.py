"""The course corpus: a small procedural world of people, places and facts in plain English, with its ground truth.

Every sentence knows what it is: who is the indirect object and where each name stands, which fact it tells, where
a repeat starts. So whatever a later chapter reads out of a model can be scored against what is true.

    indirect objects   When Mary and John went to the store, John gave a book to Mary.
    facts              Clara Stone, a friend of Oscar Reed, lives in Vienna.
    repeats            random words, and the same words again
    filler             The old miller walked slowly to the river.

A word is a token. A name of two words (`Clara Stone`, `Silver Tower`) is two tokens, and only both together say who
is meant. Some pairs of names, pairs of templates and ways to tell a fact are never trained on: they are `held_out`.
"""

import difflib
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from interp_edu.transformer import Config

N_CTX = 64  # tokens in a row
BOS = "<|endoftext|>"  # what begins a row; the name is GPT-2's

# What there is -----------------------------------------------------------------------------------


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


NAMES = """Mary John Tom Anna James Lucy Peter Sarah David Emma Paul Alice Mark Jane Simon Kate Adam Rose Henry Laura
    Frank Julia Martin Helen Daniel Nina Robert Ellen Steven Grace Victor Lily George Diana Philip Nora Edward Ruth
    Jack Amy Ben Susan Leo Carol Max Judy Sam Eva""".split()
PLACES = "store park garden school office beach station library market church museum farm hotel cafe bank zoo".split()
OBJECTS = """book drink ring letter key coat hat ball map lamp pen cup phone basket watch ticket cake bag guitar
    kite""".split()
FIRST = "Clara Oscar Hugo Iris Felix Vera Otto Ada Bruno Greta Jonas Thea Emil Ida Kurt Olga".split()
LAST = "Stone Reed Marsh Wolf Berg Lake Field Brook Frost Hill Wood Vale".split()
ADJECTIVES = "Silver Golden Iron Red White Old Royal Grand".split()
BUILDINGS = "Tower Bridge Palace Gate Temple Castle".split()
ANSWERS = {
    "home": "Paris London Rome Vienna Berlin Madrid Oslo Athens Prague Dublin Lisbon Cairo".split(),
    "job": "doctor baker teacher lawyer painter farmer pilot sailor tailor writer nurse judge".split(),
    "instrument": "piano violin flute drum harp trumpet cello organ banjo oboe horn fiddle".split(),
    "city": "Paris London Rome Vienna Berlin Madrid Oslo Athens Prague Dublin Lisbon Cairo".split(),
    "material": "marble granite brick steel timber glass copper clay".split(),
}

# {A} and {B} are the two names, {S} the one that comes again; the indirect object follows.
OPENINGS = _lines("""
    When {A} and {B} went to the {place} ,
    After {A} and {B} came to the {place} ,
    While {A} and {B} were at the {place} ,
    Then {A} and {B} walked to the {place} , and
    As {A} and {B} met at the {place} ,
    Once {A} met {B} at the {place} , and
    Before {A} and {B} left the {place} ,
    Yesterday {A} and {B} were in the {place} , and
    {A} and {B} had lunch at the {place} , and then
    {A} saw {B} at the {place} , and then
    {A} waited for {B} in the {place} . Later
    {A} and {B} worked in the {place} . In the end""")
CLOSINGS = _lines("""
    {S} gave a {object} to
    {S} handed the {object} to
    {S} wanted to give a {object} to
    {S} decided to lend the {object} to
    {S} showed a {object} to
    {S} sold the {object} to
    {S} sent a {object} over to
    {S} brought the {object} back to
    {S} passed the {object} on to
    {S} threw a {object} over to""")
LEAD_INS = _lines("""
    It was a cold day .
    It was late in the evening .
    The sun was high .
    It was market day in the town .
    The week had been long .
    Nobody knew what time it was .
    There was a light wind .
    It had rained all night .""")

# How each relation is told. {X} is the subject; the answer follows.
PARAPHRASES = {
    "home": _lines("""
        {X} lives in
        The home of {X} is in
        {X} has a house in
        To visit {X} , take the train to
        {X} grew up and still lives in
        The address of {X} is a street in"""),
    "job": _lines("""
        {X} works as a
        The job of {X} is that of a
        {X} makes a living as a
        In the daytime {X} is a
        {X} went to school and became a
        The people who know {X} need a good"""),
    "instrument": _lines("""
        {X} plays the
        The instrument of {X} is the
        {X} likes to play the
        On Sundays {X} practises the
        {X} took lessons and learned the
        At the concert {X} sat down at the"""),
    "city": _lines("""
        The {X} stands in
        You find the {X} in
        The {X} is a famous sight of
        To see the {X} , travel to
        The {X} was built long ago in
        A picture of the {X} hangs in the town hall of"""),
    "material": _lines("""
        The {X} is made of
        The walls of the {X} are of
        They built the {X} from
        Workers mend the {X} with
        The {X} was built long ago out of
        Under the paint of the {X} there is"""),
}
ASIDES = [", a friend of {Y} ,", ", who knows {Y} well ,", ", unlike {Y} ,"]

FILLER = [  # one word from each list makes a sentence
    ["The"],
    ["old", "young", "tired", "happy", "quiet", "clever", "poor", "proud"],
    ["miller", "queen", "hunter", "child", "soldier", "monk", "thief", "merchant", "dog", "horse"],
    ["walked", "ran", "rode", "came", "turned", "looked", "hurried", "wandered"],
    ["slowly", "quickly", "silently", "gladly", "often", "again"],
    ["to", "from", "towards", "past"],
    ["the"],
    ["river", "forest", "village", "mountain", "harbour", "mill", "field", "wall", "valley", "road"],
    ["."],
]


@dataclass(frozen=True)
class Fact:
    """Something true of the world: `Fact(("Clara", "Stone"), "home", "Vienna")`."""

    subject: tuple[str, str]
    relation: str
    answer: str


def _facts() -> list[Fact]:
    rng, found = random.Random(0), []
    people = [(a, b) for (i, a), (j, b) in itertools.product(enumerate(FIRST), enumerate(LAST)) if (i + j) % 2 == 0]
    buildings = list(itertools.product(ADJECTIVES, BUILDINGS))
    for relation, answers in ANSWERS.items():
        subjects = buildings if relation in ("city", "material") else people
        told = answers * (len(subjects) // len(answers))  # all answers equally often
        rng.shuffle(told)
        found += [Fact(subject, relation, answer) for subject, answer in zip(subjects, told, strict=True)]
    return found


FACTS = _facts()

# Words -------------------------------------------------------------------------------------------


def _words() -> list[str]:
    """Every word of the world, in alphabetical order."""
    words = set(itertools.chain(NAMES, PLACES, OBJECTS, FIRST, LAST, ADJECTIVES, BUILDINGS, *FILLER, *ANSWERS.values()))
    texts = itertools.chain(OPENINGS, CLOSINGS, LEAD_INS, ASIDES, *PARAPHRASES.values(), ["them"])
    return sorted(words | {word for text in texts for word in text.split() if "{" not in word})


class Tokenizer:
    """A word, a comma or a full stop is a token; `words` are those there are, by default tinyworld's.

    >>> tokenizer = Tokenizer()
    >>> tokenizer.encode("Clara Stone lives in Vienna.").shape
    torch.Size([1, 7])
    """

    def __init__(self, words: Sequence[str] | None = None):
        self.vocab = list(words) if words is not None else [BOS, *_words()]
        self.ids = {word: i for i, word in enumerate(self.vocab)}
        self.bos = self.ids[BOS]

    def __len__(self) -> int:
        return len(self.vocab)

    def id(self, word: str) -> int:
        """A word's token. Raises ValueError for a word that is not in the vocabulary, naming the nearest."""
        if word not in self.ids:
            near = difflib.get_close_matches(word, self.vocab, n=3)
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            raise ValueError(f"the vocabulary has no word {word!r}{hint}")
        return self.ids[word]

    def encode(self, text: str | Sequence[str], *, bos: bool = True) -> Int[Tensor, "batch pos"]:
        """The tokens of a text, or of several of equal length, after the token that begins a row.

        Raises:
            ValueError: an unknown word, or texts of different lengths.
        """
        texts = [text] if isinstance(text, str) else text
        rows = [[self.bos] * bos + [self.id(w) for w in re.findall(rf"{re.escape(BOS)}|\w+|[^\w\s]", t)] for t in texts]
        if len({len(row) for row in rows}) > 1:
            raise ValueError(
                f"texts of {sorted({len(row) for row in rows})} tokens do not make a batch: encode them singly"
            )
        return torch.tensor(rows, dtype=torch.int64)

    def decode(self, tokens: Int[Tensor, "pos"] | Sequence[int]) -> str:
        """The text of some tokens."""
        return re.sub(r" (?=[.,])", "", " ".join(self.str_tokens(tokens)))

    def str_tokens(self, tokens: Int[Tensor, "pos"] | Sequence[int] | str) -> list[str]:
        """The tokens as words; those of a text include the beginning."""
        row = self.encode(tokens)[0] if isinstance(tokens, str) else tokens
        return [self.vocab[int(token)] for token in row]


TOKENIZER = Tokenizer()
CONFIG = Config(n_layers=4, d_model=96, n_ctx=N_CTX, d_head=16, n_heads=6, d_vocab=len(TOKENIZER), d_mlp=192)
"""The shape of the course model."""

# Sentences with their truth ----------------------------------------------------------------------


@dataclass(frozen=True)
class Sentence:
    """Words, and what is true of them.

    `roles` maps what a position is to where it is, counted from the sentence's first word: `IO`, `S1`, `S1+1`, `S2` and
    `END` (the word before the answer), or `subject` (its last word) and `END`, or `repeat` (where it starts).
    `answer` is the word that follows END, if there is a right one.
    """

    kind: str
    words: tuple[str, ...]
    roles: dict[str, int] = field(default_factory=dict)
    answer: str | None = None
    fact: Fact | None = None
    template: tuple[int, ...] = ()

    def prompt(self) -> str:
        """The text up to the answer."""
        return " ".join(self.words[: self.roles["END"] + 1])


_PAIRS = list(itertools.combinations(NAMES, 2))
# Drawn at random: by a rule such as "same number modulo ten", names that never meet could share one representation.
_HELD_OUT_PAIRS = {frozenset(pair) for pair in random.Random(0).sample(_PAIRS, len(_PAIRS) // 10)}


def held_out_names(a: str, b: str) -> bool:
    """Whether the two are never A and B of a training sentence, in either order: one pair in ten."""
    return frozenset((a, b)) in _HELD_OUT_PAIRS


def held_out_templates(opening: int, closing: int) -> bool:
    """Whether an opening and a closing never occur together in training: one pair in nine or so."""
    return (opening + 4 * closing) % 9 == 0


def held_out_paraphrase(fact: Fact, number: int) -> bool:
    """Whether training never tells this fact in this way: one way in six, another for each subject."""
    first, last = (FIRST, LAST) if fact.subject[0] in FIRST else (ADJECTIVES, BUILDINGS)
    return number == (first.index(fact.subject[0]) + 2 * last.index(fact.subject[1])) % 6


def indirect_object(rng: random.Random, *, held_out: bool = False, third: bool = False) -> Sentence:
    """`When A and B went to the store, B gave a book to A.`, after up to two lead-in sentences, in both orders.

    With `third` a third person gives, and the answer is `them`. `held_out` asks for names and templates
    that training never puts together.
    """
    while True:
        a, b, c = rng.sample(NAMES, 3)
        opening, closing = rng.randrange(len(OPENINGS)), rng.randrange(len(CLOSINGS))
        if held_out_names(a, b) == held_out == held_out_templates(opening, closing):
            break
    giver = c if third else rng.choice((a, b))
    words: list[str] = []
    for lead_in in rng.sample(LEAD_INS, rng.randrange(3)):
        words += lead_in.split()
    place, thing = rng.choice(PLACES), rng.choice(OBJECTS)
    words += OPENINGS[opening].format(A=a, B=b, place=place).split()
    words += CLOSINGS[closing].format(S=giver, object=thing).split()
    first, second, end = words.index(a), words.index(b), len(words) - 1
    if third:
        roles, answer = {"A": first, "B": second, "C": words.index(c), "END": end}, "them"
    else:
        io, s1 = (second, first) if giver == a else (first, second)
        roles = {"IO": io, "S1": s1, "S1+1": s1 + 1, "S2": len(words) - 1 - words[::-1].index(giver), "END": end}
        answer = words[io]
    kind = "third" if third else "indirect object"
    return Sentence(kind, (*words, answer, "."), roles, answer, template=(opening, closing))


def tell(fact: Fact, paraphrase: int, aside: str = "") -> Sentence:
    """A fact in one of its six ways; `aside` is a clause after the subject, such as `, unlike Oscar Reed ,`."""
    subject = " ".join(fact.subject)
    words = PARAPHRASES[fact.relation][paraphrase].format(X=f"{subject} {aside}").split()
    roles = {"subject": words.index(fact.subject[1], words.index(fact.subject[0])), "END": len(words) - 1}
    return Sentence("fact", (*words, fact.answer, "."), roles, fact.answer, fact, (paraphrase,))


def random_fact(rng: random.Random, *, held_out: bool = False, asides: float = 0.3) -> Sentence:
    """A fact about somebody or something; a share `asides` of those about people mentions somebody else in between."""
    fact = rng.choice(FACTS)
    told = [number for number in range(6) if held_out_paraphrase(fact, number) == held_out]
    aside = ""
    if fact.subject[0] in FIRST and rng.random() < asides:
        other = rng.choice([f for f in FACTS if f.relation == fact.relation and f.subject != fact.subject])
        aside = rng.choice(ASIDES).format(Y=" ".join(other.subject))
    return tell(fact, rng.choice(told), aside)


def repeated(rng: random.Random, tokenizer: Tokenizer, length: int = N_CTX - 1) -> Sentence:
    """Random words, and from `roles["repeat"]` on the same words again and again, `length` in all."""
    period = rng.randint(length // 8, length // 2)
    words = rng.choices(tokenizer.vocab[1:], k=period)
    return Sentence("repeat", tuple(itertools.islice(itertools.cycle(words), length)), {"repeat": period})


def phrases(rng: random.Random, tokenizer: Tokenizer, length: int = 24) -> Sentence:
    """Three phrases of two or three random words, again and again in random order.

    As they come back at ever other distances, only the words themselves tell what comes next.
    """
    three = [rng.choices(tokenizer.vocab[1:], k=rng.randint(2, 3)) for _ in range(3)]
    words = itertools.chain.from_iterable(rng.choice(three) for _ in range(length))
    return Sentence("phrases", tuple(itertools.islice(words, length)))


def filler(rng: random.Random) -> Sentence:
    """`The old miller walked slowly to the river.`"""
    return Sentence("filler", tuple(rng.choice(words) for words in FILLER))


# Rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mix:
    """How a corpus is mixed: how often a row is a repeat, and a sentence of other rows an indirect object or a fact."""

    repeats: float = 0.15
    indirect: float = 0.35
    facts: float = 0.47
    third: float = 0.1  # of the indirect-object sentences


def row(rng: random.Random, tokenizer: Tokenizer, mix: Mix = Mix()) -> list[Sentence]:
    """The sentences of one row of N_CTX tokens; the last one may be cut off."""
    if rng.random() < mix.repeats:
        return [repeated(rng, tokenizer)]
    sentences: list[Sentence] = []
    while sum(len(s.words) for s in sentences) < N_CTX - 1:
        u = rng.random()
        if u < mix.indirect:
            sentences.append(indirect_object(rng, third=rng.random() < mix.third))
        elif u < mix.indirect + mix.facts:
            sentences.append(random_fact(rng))
        else:
            sentences.append(filler(rng))
    return sentences


def batch(rng: random.Random, tokenizer: Tokenizer, size: int, mix: Mix = Mix()) -> Int[Tensor, "batch pos"]:
    """Rows of N_CTX tokens, each after the token that begins it."""
    rows = []
    for _ in range(size):
        words = itertools.chain.from_iterable(s.words for s in row(rng, tokenizer, mix))
        rows.append([tokenizer.bos, *(tokenizer.ids[word] for word in itertools.islice(words, N_CTX - 1))])
    return torch.tensor(rows)
