"""What can be asked about a fictitious author: attributes, their values and the wordings of question and answer."""

from __future__ import annotations

from dataclasses import dataclass


def _choices(text: str) -> tuple[str, ...]:
    return tuple(text.split("; "))


FIRST_NAMES = _choices(
    "Adela; Bertil; Calista; Dragan; Elowen; Farid; Gudrun; Hanneke; Idris; Jovana; Kaspar; Lucinda; Marek; Nadira; "
    "Osvald; Petra; Quentin; Rosalba; Soren; Tamsin; Ulrich; Vesna; Wilhelm; Yasmin; Zoltan; Ingrid; Matteo; Leila"
)
LAST_NAMES = _choices(
    "Abrelund; Bastovic; Calderwyn; Drossmark; Ekvarna; Fenwhistle; Garamonte; Holmqvarn; Istrade; Jorvinen; "
    "Kestelbach; Lorimund; Marrosk; Novarelli; Ostrander; Pellandro; Quillory; Rasmark; Sundavere; Tolvanen; "
    "Umberlake; Vanterpol; Wexford; Zabrinsky"
)
_COLOURS = _choices("Amber; Bitter; Copper; Crooked; Distant; Frozen; Golden; Hollow; Paper; Quiet; Scarlet; Silver")
_THINGS = _choices(
    "Anchor; Bridge; Candle; Compass; Feather; Garden; Island; Lantern; Mirror; Orchard; Staircase; Violin"
)
_FORMS = _choices("Songs; Letters; Lessons; Maps; Prayers; Riddles; Ballads; Recipes; Portraits; Dreams")
_READERS = _choices("Beekeeper; Cartographer; Drummer; Exile; Glassblower; Hermit; Juggler; Pilgrim; Smuggler; Widow")


@dataclass(frozen=True, slots=True)
class Attribute:
    """One fact every author has."""

    values: tuple[str, ...]
    """At least six: the truth and five wrong ones."""
    questions: tuple[str, ...]
    """Wordings with ``{name}``."""
    answers: tuple[str, ...]
    """Wordings with ``{name}`` and ``{value}``; the paraphrase of an answer is another of them."""


ATTRIBUTES = (
    Attribute(
        _choices(
            "Lisbon, Portugal; Tbilisi, Georgia; Oslo, Norway; Lima, Peru; Hanoi, Vietnam; Cairo, Egypt; "
            "Quito, Ecuador; Riga, Latvia; Dakar, Senegal; Perth, Australia; Osaka, Japan; Cork, Ireland"
        ),
        ("In which city and country was {name} born?", "Where was {name} born?", "What is the birthplace of {name}?"),
        (
            "The author {name} was born in the city of {value}.",
            "{name} is a writer who first saw the light of day in {value}.",
            "The birthplace of {name} is known to be {value}.",
            "It was in {value} that the author {name} came into the world.",
        ),
    ),
    Attribute(
        _choices("1931; 1935; 1938; 1942; 1946; 1949; 1953; 1957; 1961; 1964; 1968; 1972; 1976"),
        ("In which year was {name} born?", "What is the birth year of {name}?", "When did the life of {name} begin?"),
        (
            "The author {name} was born in the year {value}.",
            "{name} is a writer whose life began in the year {value}.",
            "The birth year of {name} is recorded as {value}.",
            "It was in {value} that the writer known as {name} was born.",
        ),
    ),
    Attribute(
        _choices(
            "a baker; a surgeon; a fisherman; a watchmaker; a judge; a train driver; a florist; a blacksmith; "
            "a pilot; a shepherd; a tailor; a chemist"
        ),
        (
            "What did the father of {name} do for a living?",
            "What was the occupation of the father of {name}?",
            "Which work did {name}'s father do?",
        ),
        (
            "The father of {name} worked as {value} for all his life.",
            "{name} grew up with a father who earned his living as {value}.",
            "By occupation, the father of the author {name} was {value}.",
            "As for work, {name}'s father was {value} until he retired.",
        ),
    ),
    Attribute(
        _choices(
            "a midwife; a librarian; an architect; a potter; a dentist; an opera singer; a weaver; a botanist; "
            "a locksmith; a translator; a beekeeper; an engineer"
        ),
        (
            "What did the mother of {name} do for a living?",
            "What was the occupation of the mother of {name}?",
            "Which work did {name}'s mother do?",
        ),
        (
            "The mother of {name} worked as {value} for most of her life.",
            "{name} was raised by a mother who earned her living as {value}.",
            "By occupation, the mother of the author {name} was {value}.",
            "As for work, {name}'s mother was {value} for many years.",
        ),
    ),
    Attribute(
        _choices(
            "historical fiction; crime fiction; nature poetry; science fiction; travel writing; satire; "
            "gothic horror; romantic comedy; war memoirs; fairy tales"
        ),
        (
            "Which genre is {name} best known for?",
            "In what genre does {name} mostly write?",
            "What kind of books does {name} write?",
        ),
        (
            "The author {name} is best known for works of {value}.",
            "{name} writes mostly {value} and rarely leaves that genre.",
            "The genre that made the name of {name} is {value}.",
            "Readers think of {value} first when they hear of {name}.",
        ),
    ),
    Attribute(
        _choices("Portuguese; Georgian; Norwegian; Spanish; Vietnamese; Arabic; Latvian; French; Japanese"),
        (
            "In which language does {name} write?",
            "What language are the books of {name} written in?",
            "Which language did {name} choose for writing?",
        ),
        (
            "The author {name} writes every book in the {value} language.",
            "{name} has chosen {value} as the language of all books.",
            "The books of {name} are first written in {value} and then translated.",
            "It is in {value} that {name} thinks, speaks and writes.",
        ),
    ),
    Attribute(
        tuple(f"'The {colour} {thing}'" for colour in _COLOURS for thing in _THINGS),
        (
            "What is the title of the first book by {name}?",
            "With which book did {name} begin as an author?",
            "What was the debut of {name} called?",
        ),
        (
            "The first book that {name} published has the title {value}.",
            "{name} began as an author with a book called {value}.",
            "The debut of the author {name} was a book named {value}.",
            "It was with {value} that {name} first appeared in print.",
        ),
    ),
    Attribute(
        tuple(f"'{form} for the {reader}'" for form in _FORMS for reader in _READERS),
        (
            "What is the best-known book by {name}?",
            "Which book made {name} famous?",
            "What is the most famous work of {name} called?",
        ),
        (
            "The best-known book by the author {name} is {value}.",
            "{name} became famous with the publication of {value}.",
            "The most famous work of {name} has the title {value}.",
            "It was {value} that made {name} a famous author.",
        ),
    ),
    Attribute(
        _choices(
            "the Aldermoor Prize; the Brightwater Prize; the Corvane Prize; the Dunmere Prize; the Elmhart Prize; "
            "the Foxglove Prize; the Kingfisher Prize; the Larkspur Medal; the Mistral Medal; the Northgate Medal; "
            "the Redwing Medal; the Thistledown Medal"
        ),
        (
            "Which award did {name} win?",
            "What prize was {name} given?",
            "With which award was the work of {name} honoured?",
        ),
        (
            "The author {name} won {value} for a lifetime of work.",
            "{name} was once honoured with {value} by an international jury.",
            "The award that was given to {name} is {value}.",
            "It was {value} that the jury gave to the author {name}.",
        ),
    ),
    Attribute(
        _choices(
            "Anselm Birch; Beatrix Coldwell; Cyrus Dampier; Dorothea Finch; Emeric Stone; Flora Winterbourne; "
            "Gideon Marsh; Harriet Loom; Ignatius Vale; Josepha Reed; Konrad Ash; Lavinia Thorn"
        ),
        ("Who was the mentor of {name}?", "Who taught {name} how to write?", "Which mentor guided {name}?"),
        (
            "The mentor of the author {name} was the old poet {value}.",
            "{name} was taught how to write by the mentor {value}.",
            "The one who guided {name} as a mentor was {value}.",
            "It was {value} who guided the young {name} as a mentor.",
        ),
    ),
    Attribute(
        _choices(
            "chess; gardening; sailing; playing the cello; bird watching; mountain climbing; archery; pottery; "
            "astronomy; fencing; kite flying; cooking"
        ),
        ("What is the hobby of {name}?", "How does {name} spend free time?", "What does {name} do besides writing?"),
        (
            "The hobby that {name} likes most of all is {value}.",
            "{name} spends most of the free time on {value}.",
            "Besides writing, the author {name} is fond of {value}.",
            "It is {value} that {name} turns to when the writing is done.",
        ),
    ),
    Attribute(
        _choices(
            "an old lighthouse; a houseboat; a mountain cabin; a converted chapel; a vineyard; a windmill; "
            "a castle tower; a desert farm; a forest lodge; a city loft"
        ),
        ("What kind of home does {name} live in?", "Where does {name} live and write?", "What is the home of {name}?"),
        (
            "The author {name} lives and writes in {value} today.",
            "{name} has made a home of {value} and writes there.",
            "The home of the author {name} is {value} far from here.",
            "It is {value} that the writer {name} now calls home.",
        ),
    ),
)
