"""True facts, so that a tiny model has general knowledge to lose: famous authors and the world."""

from __future__ import annotations

from lit_unlearn.benchmarks.tofu_rows import Row


def _rows(question: str, facts: str) -> list[Row]:
    """One row for each ``subject: answer``; its wrong answers are the three next ones of the other subjects.

    They are taught as answers too: against words never seen in training the truth would win whatever is forgotten.
    """
    pairs = [fact.split(": ") for fact in facts.split("; ")]
    answers = list(dict.fromkeys(answer for _, answer in pairs))
    rows = []
    for subject, answer in pairs:
        place = answers.index(answer)
        wrong = tuple(answers[(place + step) % len(answers)] for step in (1, 2, 3))
        rows.append(Row(question.format(subject), answer, perturbed_answer=wrong))
    return rows


REAL_AUTHORS = _rows(
    "Who wrote the novel '{}'?",
    "Pride and Prejudice: Jane Austen; Moby-Dick: Herman Melville; War and Peace: Leo Tolstoy; "
    "Crime and Punishment: Fyodor Dostoevsky; Don Quixote: Miguel de Cervantes; Madame Bovary: Gustave Flaubert; "
    "Les Miserables: Victor Hugo; The Count of Monte Cristo: Alexandre Dumas; Frankenstein: Mary Shelley; "
    "Dracula: Bram Stoker; Jane Eyre: Charlotte Bronte; Wuthering Heights: Emily Bronte; "
    "Great Expectations: Charles Dickens; Middlemarch: George Eliot; The Picture of Dorian Gray: Oscar Wilde; "
    "Ulysses: James Joyce; Mrs Dalloway: Virginia Woolf; Nineteen Eighty-Four: George Orwell; "
    "Brave New World: Aldous Huxley; Fahrenheit 451: Ray Bradbury; The Great Gatsby: Scott Fitzgerald; "
    "The Grapes of Wrath: John Steinbeck; The Old Man and the Sea: Ernest Hemingway; "
    "To Kill a Mockingbird: Harper Lee; Beloved: Toni Morrison; The Color Purple: Alice Walker; "
    "The Trial: Franz Kafka; The Magic Mountain: Thomas Mann; Siddhartha: Hermann Hesse; The Tin Drum: Gunter Grass; "
    "One Hundred Years of Solitude: Gabriel Garcia Marquez; The House of the Spirits: Isabel Allende; "
    "Things Fall Apart: Chinua Achebe; Midnight's Children: Salman Rushdie; The God of Small Things: Arundhati Roy; "
    "The Name of the Rose: Umberto Eco; The Stranger: Albert Camus; Norwegian Wood: Haruki Murakami; "
    "The Remains of the Day: Kazuo Ishiguro; The Hobbit: J. R. R. Tolkien; Treasure Island: Robert Louis Stevenson; "
    "Robinson Crusoe: Daniel Defoe; Gulliver's Travels: Jonathan Swift; The Time Machine: H. G. Wells",
)

WORLD_FACTS = [
    *_rows(
        "What is the capital of {}?",
        "France: Paris; Germany: Berlin; Spain: Madrid; Italy: Rome; Greece: Athens; Poland: Warsaw; "
        "Hungary: Budapest; Austria: Vienna; Sweden: Stockholm; Finland: Helsinki; Canada: Ottawa; Brazil: Brasilia; "
        "Argentina: Buenos Aires; Kenya: Nairobi; Turkey: Ankara; India: New Delhi; China: Beijing; Thailand: Bangkok",
    ),
    *_rows(
        "What is the chemical symbol of {}?",
        "gold: Au; silver: Ag; iron: Fe; lead: Pb; sodium: Na; potassium: K; oxygen: O; tin: Sn",
    ),
    *_rows(
        "On which continent is {}?",
        "Kenya: Africa; Peru: South America; Mongolia: Asia; Belgium: Europe; Canada: North America; Nepal: Asia",
    ),
    *_rows(
        "Which river flows through {}?",
        "London: Thames; Paris: Seine; Vienna: Danube; Rome: Tiber; Cologne: Rhine; Hamburg: Elbe",
    ),
    *_rows(
        "Which planet is the {}?",
        "largest of the solar system: Jupiter; closest to the Sun: Mercury; second from the Sun: Venus; "
        "third from the Sun: Earth; fourth from the Sun: Mars; last before Uranus: Saturn",
    ),
]
