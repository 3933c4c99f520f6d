"""Sentences to be spoken, as many as are wanted: grammatical, and unpredictable in what they say.

The five patterns are those of semantically unpredictable sentences (Benoit, Grice and Hazan, 1996): nothing but the
sound tells which word comes next, so a recogniser that gets them right has heard them. The words are common ones that
have every sound of their language between them. Adjectives of the Romance languages are those with one form for both
genders, and nouns carry their article, so that no pattern needs grammar.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """The words of one language, and how a question begins."""

    nouns: tuple[str, ...]  # with their article
    adjectives: tuple[str, ...]
    transitive: tuple[str, ...]  # verbs, third person singular, with an object
    intransitive: tuple[str, ...]
    places: tuple[str, ...]  # prepositions that contract with no article
    patterns: tuple[str, ...]
    commands: tuple[str, ...] = ()  # verbs as in "draw!"
    infinitives: tuple[str, ...] = ()  # verbs as in "does he draw?"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split(","))


_ENGLISH_NOUNS = _words("""
    table house river garden window teacher mountain engine picture doctor village bridge kitchen orange paper child boy
    girl voice choice treasure measure vision church judge ship sheep chair shadow cloud thunder father mother brother
    feather path bath cloth moon spoon book foot bird nurse world horse door story year ear beard tour bear square fire
    flower tower hour cow mouse joy coin oil stone boat road day train lake plate eye light night time knife king ring
    song finger uncle yard union music cube view zoo jazz prize zebra leaf field valley glove wave wheel whale queen
    question answer vegetable jacket bottle apple cat hat lamp truck luck drum summer winter problem box clock
""")
_ROMANCE_PATTERNS = (
    "{noun} {intransitive} {place} {noun} {adjective}.",
    "{noun} {adjective} {transitive} {noun}.",
    "{noun} {transitive} {noun} {adjective}, {and_} {noun} {intransitive}.",
    "{noun} {transitive} {noun} {which} {intransitive}.",
)


def _patterns(and_: str, which: str, question: str) -> tuple[str, ...]:
    """The Romance patterns with the small words of one language."""
    return tuple(
        pattern.replace("{and_}", and_).replace("{which}", which) for pattern in (*_ROMANCE_PATTERNS, question)
    )


VOCABULARIES = {
    "en": Vocabulary(
        nouns=tuple(f"the {noun}" for noun in _ENGLISH_NOUNS),
        adjectives=_words("""
            bright dark young old loud quiet thick thin smooth rough yellow green purple wooden golden heavy light cold
            warm slow early strange simple curious usual royal sharp round narrow wide brave gentle huge tiny clever
            polite eager hollow northern southern
        """),
        transitive=_words("""
            found carried watched loved measured painted pushed pulled washed chose joined judged followed enjoyed
            finished answered questioned remembered forgot borrowed counted avoided discovered mixed shook thought
        """),
        intransitive=_words("""
            walked jumped laughed waited slept turned danced worked travelled shouted yawned smiled vanished fell grew
            appeared listened sang hurried stayed
        """),
        places=_phrases("""
            through, behind, under, above, beside, around, without, between the door and, near, beyond, towards, inside,
            against, before
        """),
        patterns=(
            "{noun} {intransitive} {place} {noun_adjective}.",
            "{noun_adjective} {transitive} {noun}.",
            "{command} {noun} and {noun_adjective}.",
            "how does {noun} {infinitive} {noun_adjective}?",
            "{noun} {transitive} {noun} that {intransitive}.",
            "{number} years ago, {noun} {intransitive}, and {noun} {transitive} {noun_adjective}.",
        ),
        commands=_words("draw bring watch choose push carry measure join wash follow use show teach catch hide leave"),
        infinitives=_words("love measure find watch join carry avoid enjoy choose judge follow pull wash use change"),
    ),
    "es": Vocabulary(
        nouns=_phrases("""
            la mesa, el jardín, la ventana, el caballo, la lluvia, el zapato, la cocina, el río, la guitarra, el perro,
            la calle, el niño, la montaña, el queso, la hija, el viaje, la llave, el árbol, la ciudad, el pueblo,
            la noche, el hombre, la mujer, el agua, la ciencia, el guante, la voz, el huevo, la fruta, el reloj
        """),
        adjectives=_words("verde azul grande fuerte dulce triste feliz joven gris fácil breve alegre caliente útil"),
        transitive=_words("busca encuentra come pinta mira llama rompe abre cierra sigue quiere lleva dibuja recoge"),
        intransitive=_words("canta duerme camina llora corre baila vuelve trabaja juega viaja crece salta"),
        places=_phrases("sobre, entre las casas y, hacia, desde, contra, bajo, sin, para, en"),
        patterns=_patterns("y", "que", "¿cómo {transitive} {noun} {noun}?"),
    ),
    "fr": Vocabulary(
        nouns=_phrases("""
            la table, le jardin, la fenêtre, le cheval, la pluie, le chapeau, la cuisine, le fleuve, la guitare,
            le chien, la rue, le garçon, la montagne, le fromage, la fille, le voyage, la clé, le feu, la ville,
            le village, la nuit, le roi, la feuille, le soleil, la vigne, le pain, la voix, le bœuf, la lune, le vin
        """),
        adjectives=_words("rouge jaune jeune triste calme large rapide simple utile étrange sombre fragile tranquille"),
        transitive=_words(
            "cherche trouve mange peint regarde appelle casse ouvre ferme suit aime porte dessine choisit"
        ),
        intransitive=_words("chante dort marche pleure court danse revient travaille joue voyage tombe saute"),
        places=_phrases("sur, entre les maisons et, vers, depuis, contre, sous, sans, pour, dans, devant, derrière"),
        patterns=_patterns("et", "qui", "comment {noun} {intransitive}?"),
    ),
    "it": Vocabulary(
        nouns=_phrases("""
            la tavola, il giardino, la finestra, il cavallo, la pioggia, il cappello, la cucina, il fiume, la chitarra,
            il cane, la strada, il ragazzo, la montagna, il formaggio, la figlia, il viaggio, la chiave, il fuoco,
            la città, il paese, la notte, il re, la foglia, il sole, la vigna, il pane, la voce, il bosco, la luna
        """),
        adjectives=_words(
            "verde grande forte dolce triste felice giovane breve semplice veloce facile celebre gentile"
        ),
        transitive=_words(
            "cerca trova mangia dipinge guarda chiama rompe apre chiude segue vuole porta disegna sceglie"
        ),
        intransitive=_words("canta dorme cammina piange corre balla torna lavora gioca viaggia cade salta"),
        places=_phrases("sopra, tra le case e, verso, contro, sotto, senza, per, con, dietro, dentro"),
        patterns=_patterns("e", "che", "come {transitive} {noun} {noun}?"),
    ),
    "pt": Vocabulary(
        nouns=_phrases("""
            a mesa, o jardim, a janela, o cavalo, a chuva, o sapato, a cozinha, o rio, a viola, o cachorro, a rua,
            o menino, a montanha, o queijo, a filha, a viagem, a chave, o fogo, a cidade, o povo, a noite, o homem,
            a mulher, o pão, a ciência, o vinho, a voz, o ovo, a lua, o coração
        """),
        adjectives=_words("verde azul grande forte doce triste feliz jovem breve simples fácil alegre quente leve"),
        transitive=_words("busca encontra come pinta olha chama quebra abre fecha segue quer leva desenha escolhe"),
        intransitive=_words("canta dorme caminha chora corre dança volta trabalha brinca viaja cresce pula"),
        places=_phrases("sobre, entre as casas e, até, desde, contra, sob, sem, para, com"),
        patterns=_patterns("e", "que", "como {noun} {transitive} {noun}?"),
    ),
}
_NUMBERS = _words("two three four five six seven eight nine ten eleven twelve thirteen twenty thirty fifty")


def sentence(language: str, draw: random.Random) -> str:
    """One sentence, with a capital and a full stop or question mark."""
    words = VOCABULARIES[language]
    text = draw.choice(words.patterns)
    while "{" in text:
        before, _, rest = text.partition("{")
        part, _, after = rest.partition("}")
        text = before + _drawn(part, words, draw) + after
    start = 1 if text.startswith("¿") else 0
    return text[:start] + text[start].upper() + text[start + 1 :]


def _drawn(part: str, words: Vocabulary, draw: random.Random) -> str:
    if part == "noun_adjective":  # as in English: "the" before both
        return draw.choice(words.nouns).replace("the ", f"the {draw.choice(words.adjectives)} ")
    of = {
        "noun": words.nouns,
        "adjective": words.adjectives,
        "transitive": words.transitive,
        "intransitive": words.intransitive,
        "place": words.places,
        "command": words.commands,
        "infinitive": words.infinitives,
        "number": _NUMBERS,
    }
    return draw.choice(of[part])
