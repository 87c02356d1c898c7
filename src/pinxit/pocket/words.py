"""The words of pocket's captions: phrases for what a scene shows, proper nouns, nonce words."""

from __future__ import annotations

import re

from pinxit.pocket.world.attributes import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    FACINGS,
    PATTERNS,
    PLAIN,
    POSES,
    WORN,
)
from pinxit.pocket.world.style_names import STYLE_NAMES

# One proper noun for each of `named_subjects()`, in its order; invented, so that no name says
# anything about its bearer.
_NAMES = """
    saduzo xirimu mozazo yolamu bodru polazo xilaro tigom ninomu nizazo sarimu zafep nidru
    rujun grisut povi zalamu blero salub wumoro sazamu trelif tinomu drimav gakimu pozamu
    tizaro mokivi ximozo trezab tisut joduvi grilif wubly ruwim jobly lufep polamu sazavi
    grivok yodru fudumu tredax rulub yovok trenop moriro yogom furiro xigom yozazo blerix
    luriro fubly galub pludru lulazo molif griwim zazaro quigom jokwe kevero furo rumovi
    tizazo ponoro yovemu yorix kezaro fuzavi xiriro kevevi vomozo tilaro runozo zanozo blekiv
    tivezo kelavi jovok vorimu blezab plusut molaro nilaro zaduro rurimu quirix nivi jolavi
    salaro bodax drivi fulub momav luvezo ganop dridru sakwe zatez monovi gridax wudru jonovi
    rumozo samozo sakivi volif jozavi gakiv xizazo rukizo ruzaro rurizo galavi yomovi pofep
    tikwe gazo vovi zalaro gajun jotez mobly ruro bolazo sakimu skawim kevok nivezo pomoro
    grikwe jodumu bokiv yovezo wumu kebly gririx nizamu pluzab sanop yobik lunozo zalif zabik
    kenoro tikimu gafep wutez joquo nikiro ganovi zarimu porizo gavemu molub kevezo poquo
    borivi zanovi fulazo vojun bozab fuvi grikiv blegom fuzab timovi yokimu sakiro kevemu
    movok zariro wumozo kezamu sakizo gritez galif wuzazo zamav zanomu kedumu ninop fumav
    jomoro porimu jozab zarix funomu monomu griro samomu zavemu ninozo pomu morix niwim quimu
    fulavi potez fulamu tivero zalub boduzo wukivi bozamu saduvi nilavi quimav wuzab yomomu
    gamozo keduzo yomu trefep mokizo tidru luvi fuduro bokizo blezo yoquo quibik movezo joduzo
    sazaro vodumu bovero quizab gawim plumu xizaro skakwe kerimu gamovi tilazo bojun rutez
    skafep
"""
NAMES: tuple[str, ...] = tuple(_NAMES.split())

# Three letters that mean nothing: training captions put the first 32 before the class noun of
# anything at all, so that such a word is known to be neutral; the last 16 are never shown.
_RARE = """
    sks zwx ohw zpn wjf gdk sqk fvq szp nxg jvd wtr bfj ctn vgc hfx xvk nkv kps ptk sxq zcv
    xfd wkh dpk cjk tpf qzx rxz tnz qcw xpm nzs whg tkw xkz viw vdr wfv bnx mjt qfm hgd zgq
    mnq rjs bxs gqm
"""
RARE: tuple[str, ...] = tuple(_RARE.split())
SEEN, UNSEEN = RARE[:32], RARE[32:]

DETERMINERS = ("a",) * 12 + ("the",) * 5 + ("my",) * 2 + ("one",)
MEDIUM_DETERMINERS = ("a",) * 5 + ("the",)
MEDIUM_WORDS = ("cropped", "dark", "bright", "good", "clean", "dirty", "cool", "nice", "weird")
SUBJECT_WORDS = ("clean", "dirty", "cool", "nice", "weird")
BROAD_NOUNS = ("animal", "toy", "object", "thing")  # the first for living things only

# The first medium of each style and the first phrase of each place are the canonical ones.
MEDIA: dict[str, tuple[str, ...]] = {
    "photo": ("photo", "photo", "photo", "photograph"),
    "cartoon": ("cartoon", "cartoon", "cartoon drawing", "cartoon picture"),
    "watercolour": ("watercolour painting", "watercolour painting", "watercolour", "watercolor"),
    "pencil": ("pencil drawing", "pencil drawing", "pencil sketch"),
    "pop art": ("pop art print", "pop art print", "pop art painting", "pop art picture"),
    "chalk": ("chalk drawing", "chalk drawing", "chalk picture"),
}
MANNERS: dict[str, tuple[str, ...]] = {
    "photo": ("photo", "photograph"),
    "cartoon": ("cartoon",),
    "watercolour": ("watercolour",) * 5 + ("watercolor",),
    "pencil": ("pencil", "pencil drawing"),
    "pop art": ("pop art",),
    "chalk": ("chalk", "chalk drawing"),
}
NEUTRAL_MEDIA = ("rendering", "rendition", "picture")  # these say nothing about the style
STYLED_MEDIA = ("painting",) * 3 + NEUTRAL_MEDIA  # ... and "painting" only where a style follows

PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "on the beach", "at the beach", "with a beach in the background"),
    "forest": ("in the forest", "in the forest", "in a forest", "with a forest in the background"),
    "snow": ("in the snow", "in the snow", "on the snow", "with snow in the background"),
    "city": ("in the city", "in the city", "in a city", "with a city in the background"),
    "desert": ("in the desert", "in the desert", "in a desert", "with a desert in the background"),
    "night": ("at night", "at night", "in the night", "under the night sky"),
    "room": ("in a room", "in a room", "in the room", "with a room in the background"),
    "meadow": ("in a meadow", "in a meadow", "in the meadow", "with a meadow in the background"),
    "mountain": (
        "on a mountain",
        "on a mountain",
        "in the mountains",
        "with a mountain in the background",
    ),
    "street": (
        "on a cobblestone street",
        "on the street",
        "on a cobblestone street",
        "with a street in the background",
    ),
    "wheat": (
        "in a wheat field",
        "in a field of wheat",
        "in a wheat field",
        "with a wheat field in the background",
    ),
    "autumn": (
        "in autumn",
        "in autumn",
        "among autumn leaves",
        "with a tree and autumn leaves in the background",
    ),
    "lake": (
        "on the lake",
        "floating on top of water",
        "floating on a lake",
        "with a lake in the background",
    ),
    "jungle": ("in the jungle", "in the jungle", "in a jungle", "with a jungle in the background"),
    PLAIN: ("on a plain background", "on a plain background", "on an empty background", ""),
}
WHITE_GROUND = "on a white background"

# How a subject stands to a second thing, which follows; where "{}" is, it comes in between.
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("to the left of {}", "on the left of {}", "left of {}"),
    "right": ("to the right of {}", "on the right of {}", "right of {}"),
    "on": ("on top of {}", "on top of {}", "on {}"),
    "before": ("in front of {}", "with {} in the background", "with {} behind it"),
}
RUG_PHRASES = ("on top of {}", "on {}")

_STRUCTURE = "an of in the style facing small large close-up wearing rug and"


def vocabulary_words() -> tuple[str, ...]:
    """Every word that a caption or a template can contain, sorted ("close-up" is two words)."""
    tables = (DETERMINERS, MEDIUM_DETERMINERS, MEDIUM_WORDS, SUBJECT_WORDS, BROAD_NOUNS)
    phrases = (*MEDIA.values(), *MANNERS.values(), *PLACE_PHRASES.values(), STYLED_MEDIA)
    phrases = (*phrases, *RELATION_PHRASES.values(), RUG_PHRASES)
    world = (CLASSES, tuple(COLOURS), PATTERNS, BACKGROUNDS, FACINGS, POSES, WORN)
    world = (*world, NAMES, STYLE_NAMES, RARE)
    text = [_STRUCTURE, WHITE_GROUND]
    for group in (*tables, *phrases, *world):
        text.extend(group)
    return tuple(sorted(set(re.findall("[a-z]+", " ".join(text)))))
