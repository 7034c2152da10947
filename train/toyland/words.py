"""All wordings of the captions: for each attribute its synonyms, the canonical one first."""

from __future__ import annotations

from train.toyland.subjects import COLORS

NOUNS: dict[str, tuple[str, ...]] = {
    "bear": ("bear", "teddy"),
    "cat": ("cat", "kitten", "kitty"),
    "rabbit": ("rabbit", "bunny"),
    "duck": ("duck", "duckling"),
    "elephant": ("elephant",),
    "robot": ("robot", "droid"),
    "car": ("car", "automobile"),
    "knight": ("knight", "warrior"),
    "dog": ("dog", "puppy"),
    "pig": ("pig", "piglet"),
    "mouse": ("mouse",),
    "fox": ("fox",),
    "lion": ("lion",),
    "frog": ("frog", "toad"),
    "penguin": ("penguin",),
    "owl": ("owl",),
    "turtle": ("turtle", "tortoise"),
    "dinosaur": ("dinosaur", "trex"),
    "dragon": ("dragon",),
    "truck": ("truck", "lorry"),
    "rocket": ("rocket", "spaceship"),
    "teapot": ("teapot", "kettle"),
    "vase": ("vase", "jug"),
    "backpack": ("backpack", "rucksack"),
    "lamp": ("lamp",),
    "astronaut": ("astronaut", "spaceman"),
    "wizard": ("wizard", "magician"),
    "chef": ("chef", "cook"),
}
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "at the beach", "on a sandy beach", "by the sea", "on the shore"),
    "jungle": ("in the jungle", "in a lush jungle", "in the rainforest", "in a tropical forest"),
    "city": ("on a city street", "in the city", "on the street", "in a big town", "downtown"),
    "snow": ("in the snow", "in a snowy forest", "on a winter day", "in the snowy winter"),
    "desert": ("in the desert", "on a sand dune", "in a sandy desert", "next to a cactus"),
    "underwater": ("underwater", "under the sea", "at the bottom of the ocean", "under water"),
    "night": ("at night", "under the night sky", "under the stars", "in the moonlight"),
    "meadow": ("in a meadow", "on the grass", "in a field of flowers", "in the park"),
    "mountains": ("in the mountains", "in front of mountains", "near a mountain", "in the alps"),
    "kitchen": ("in the kitchen", "on a kitchen table", "on a wooden table"),
    "space": ("in space", "on the moon", "in outer space", "on another planet"),
    "autumn": ("in an autumn forest", "in the autumn leaves", "in the woods in autumn", "in the fall"),
    "castle": ("in front of a castle", "at a castle", "near an old castle"),
    "volcano": ("in front of a volcano", "near a volcano", "on hot lava"),
    "bedroom": ("in a bedroom", "on a rug", "next to a bed", "in a cozy room"),
    "studio": ("in a studio", "on a plain background", "in a plain room", "in an empty room"),
}
STYLES: dict[str, tuple[tuple[str, str], ...]] = {  # (before the subjects, after everything)
    "photo": (("", ""), ("", ""), ("a photo of ", ""), ("a picture of ", ""), ("a 3d render of ", "")),
    "watercolor": (
        ("", ", watercolor style"),
        ("a watercolor painting of ", ""),
        ("a watercolor of ", ""),
        ("", ", in watercolor"),
        ("", ", painted in watercolor"),
    ),
    "sketch": (
        ("", ", pencil sketch style"),
        ("a pencil sketch of ", ""),
        ("a pencil drawing of ", ""),
        ("a sketch of ", ""),
        ("", ", drawn with a pencil"),
    ),
    "sepia": (
        ("", ", sepia style"),
        ("a sepia photo of ", ""),
        ("an old photo of ", ""),
        ("a vintage photograph of ", ""),
    ),
    "cartoon": (
        ("", ", cartoon style"),
        ("a cartoon of ", ""),
        ("a comic drawing of ", ""),
        ("", ", in cartoon style"),
    ),
    "neon": (
        ("", ", neon style"),
        ("a neon picture of ", ""),
        ("", ", in glowing neon"),
        ("a neon sign of ", ""),
    ),
    "oil painting": (
        ("", ", oil painting style"),
        ("an oil painting of ", ""),
        ("a painting of ", ""),
        ("", ", painted in oil"),
    ),
    "halftone": (
        ("", ", halftone style"),
        ("a halftone print of ", ""),
        ("a pop art print of ", ""),
        ("", ", pop art style"),
    ),
    "mosaic": (("", ", mosaic style"), ("a mosaic of ", ""), ("", ", made of tiles")),
    "blueprint": (("", ", blueprint style"), ("a blueprint of ", ""), ("", ", drawn as a blueprint")),
    "pixel art": (
        ("", ", pixel art style"),
        ("pixel art of ", ""),
        ("a pixel art picture of ", ""),
        ("", ", in pixel art style"),
    ),
}
SHAPES: dict[str, tuple[str, ...]] = {
    "normal": ("",),
    "cube shaped": ("cube shaped", "cubic", "boxy"),
    "tall": ("tall",),
    "chubby": ("chubby", "fat", "round"),
    "tiny": ("tiny", "little", "small"),
}
ACCESSORIES: dict[str, tuple[str, ...]] = {
    "hat": ("hat", "top hat"),
    "crown": ("crown",),
    "scarf": ("scarf",),
    "glasses": ("glasses", "sunglasses"),
    "bow tie": ("bow tie",),
    "cape": ("cape",),
    "party hat": ("party hat",),
    "headphones": ("headphones",),
    "flower": ("flower",),
}
PLURAL = frozenset({"glasses", "headphones"})
WEAR = ("wearing", "with", "in")
COLOR_WORDS: dict[str, tuple[str, ...]] = {c: (c,) for c in COLORS} | {
    "gray": ("gray", "grey"),
    "purple": ("purple", "violet"),
    "teal": ("teal", "turquoise"),
}
PATTERNS: dict[str, tuple[tuple[str, str], ...]] = {  # adjective form, and "with …" form; {a} {b} are the two colours
    "plain": (("{a} and {b}", ""), ("{a}", "with {b} details")),
    "striped": (("striped {a} and {b}", ""), ("{a}", "with {b} stripes"), ("{b} striped {a}", "")),
    "spotted": (("spotted {a} and {b}", ""), ("{a}", "with {b} spots"), ("{b} spotted {a}", "")),
    "patched": (("patched {a} and {b}", ""), ("{a}", "with {b} patches"), ("{b} patched {a}", "")),
}
POSES: dict[str, tuple[str, ...]] = {"sitting": ("sitting",), "walking": ("walking",), "waving": ("waving",)}
JOIN = (" and ", " and ", " next to ", " beside ")
STILL = frozenset({"car", "truck", "rocket", "teapot", "vase", "backpack", "lamp"})  # species whose pose is not named
