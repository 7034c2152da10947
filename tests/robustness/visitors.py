"""Clients of a running page in a process of their own, so that the server's memory can be measured without theirs.

Reads one JSON object {url, folder, clients, count, warm} from standard input; writes one line of JSON for each picture:
{number, error, mixed}. Each picture has another prompt and seed, every third another reference, so that the server's
caches turn over. Nothing here loads a model.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from gradio_client import Client, handle_file

EXAMPLES = Path(__file__).parents[2] / "examples"
REFERENCES = [str(EXAMPLES / f"{name}.png") for name in ("bear", "cat", "rabbit")]
SETTINGS = {
    "negative_prompt": "", "steps": 2, "guidance": 4, "subject_scale": 1, "seed": 3, "pictures": 1,
    "location_masks": True,
}  # fmt: skip
PROMPTS = (
    "a bear on the beach",
    "a red bear in the forest",
    "a photo of a bear wearing a hat",
    "a blue bear in the city",
)


def generate(
    client: Client, prompt: str = "a bear on the beach", references: tuple[str, ...] = (), **changed: Any
) -> Any:
    """One /generate call; references: picture files, each a bear."""
    files = [handle_file(path) for path in references]
    nouns = changed.pop("nouns", ", ".join(["bear"] * len(files)))
    options = SETTINGS | {"prompt": prompt, "nouns": nouns} | changed
    return client.predict(references=files, **options, api_name="/generate")


def visit(url: str, folder: Path, clients: int, count: int, warm: int) -> None:
    """Ask for warm + count pictures, numbered from -warm; each client waits for its own and asks for the next."""
    free: SimpleQueue[Client] = SimpleQueue()
    for number in range(clients):
        free.put(Client(url, verbose=False, download_files=str(folder / f"of {number}")))

    def picture(number: int) -> None:
        client, seed, error, mixed = free.get(), number + warm, "", False
        try:
            prompt = f"{PROMPTS[number % len(PROMPTS)]} with {seed} hats"
            _, _, recipe = generate(client, prompt, (REFERENCES[number // 3 % 3],), seed=seed)
            mixed = (recipe["seed"], recipe["prompt"]) != (seed, prompt)
        except Exception as wrong:  # counted, and told
            error = f"{type(wrong).__name__}: {wrong}"
        free.put(client)
        sys.stdout.write(json.dumps({"number": number, "error": error, "mixed": mixed}) + "\n")
        sys.stdout.flush()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(picture, range(-warm, count)))


if __name__ == "__main__":
    told = json.load(sys.stdin)
    visit(told["url"], Path(told["folder"]), told["clients"], told["count"], told["warm"])
