"""The studio over HTTP: A1111's interface, OpenAI's pictures, and a page of its own."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

from aid.core.workbench import Workbench
from aid.errors import AidError, SettingsError
from aid.sd.picture.infotext import parse_infotext
from aid.studio import listings
from aid.studio.a1111 import (
    Asked,
    Img2Img,
    Override,
    Prompt,
    Txt2Img,
    Word,
    answer_json,
    packed,
    progress_json,
    settings_of,
)
from aid.studio.desk import Answer, Busy, Closed, Job
from aid.studio.guard import Guard, refused
from aid.studio.pictures import received, text_of
from aid.studio.settings import StudioSettings
from aid.studio.shelf import Shelf, look_around
from aid.studio.studio import Studio

PAGE = Path(__file__).parent / "page"
API = "/sdapi/v1"
EMPTY = ("hypernetworks", "face-restorers", "realesrgan-models", "script-info")
LAST_SECONDS = 1  # for answers to go out
AGAIN = ("checkpoints", "vae", "loras", "embeddings")


class Text(BaseModel):
    """POST png-info."""

    model_config = ConfigDict(extra="ignore")
    image: str


class Images(BaseModel):
    """POST /v1/images/generations, as OpenAI has it."""

    model_config = ConfigDict(extra="ignore")
    prompt: Prompt
    model: Word = ""
    """Clients that can't leave it out name OpenAI's own; what is not known here is the chosen one."""
    n: int = Field(default=1, ge=1)
    size: str | None = Field(default=None, pattern=r"^(|auto|[0-9]{1,5}x[0-9]{1,5})$")


def create_app(studio: Studio) -> FastAPI:
    """The application; whoever serves it ends the studio's desk with it.

    What is chosen and what lies there changes on the event loop alone; what takes time is done in threads
    beside it, so that an interrupt is always heard.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        studio.desk.close()

    app = FastAPI(title="AID", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, names={studio.settings.host, *studio.settings.names})
    app.add_exception_handler(AidError, _told)
    app.add_exception_handler(RequestValidationError, _told)
    app.add_exception_handler(Exception, _told)
    _draws(app, studio)
    _lists(app, studio)
    _chooses(app, studio)
    _openai(app, studio)
    _page(app, studio)
    return app


def serve(settings: StudioSettings, bench: Workbench) -> None:
    """Until interrupted: then what is being drawn ends after its next step. Raises SettingsError for an
    address that can't be listened on."""
    studio = Studio(settings, bench)
    listening = _listen(settings.host, settings.port)
    config = uvicorn.Config(
        create_app(studio), log_level="warning", server_header=False, timeout_graceful_shutdown=LAST_SECONDS
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{listening.getsockname()[1]}"
    bench.progress.say(f"{address} draws with {studio.model}; Ctrl-C ends it")
    Ending(config, studio).run(sockets=[listening])


class Ending(uvicorn.Server):
    """Ends the jobs first, so that who waits gets what is drawn, and not an error."""

    def __init__(self, config: uvicorn.Config, studio: Studio) -> None:
        super().__init__(config)
        self.studio = studio

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.studio.desk.end()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        found = f"{host}, port {port}, can't be listened on ({error.strerror})"
        raise SettingsError(found, "a free port of this machine", "Choose another with --port.") from error


async def _told(request: Request, error: Exception) -> JSONResponse:
    """What is wrong, in the words of the interface, without what was sent: some clients send passwords."""
    status, message, kind = _fault(error)
    if request.url.path.startswith("/v1/"):
        return JSONResponse(
            {"error": {"message": message, "type": kind, "param": None, "code": None}}, status
        )
    return refused(status, message, kind)


def _fault(error: Exception) -> tuple[int, str, str]:
    kind = type(error).__name__
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "the body"
        return 422, f"{where}: {first['msg']}", "RequestError"
    if isinstance(error, AidError):
        return {Busy: 429, Closed: 503}.get(type(error), 422), str(error), kind
    return 500, f"the studio failed ({kind}); what it wrote where it was started tells more", kind


async def _drawn(studio: Studio, asked: Asked, request: Request, **pictures: Path) -> tuple[Job, Answer]:
    override = asked.override_settings or Override()
    title = studio.shelf.model(override.sd_model_checkpoint or studio.model)
    settings = settings_of(asked, studio.usual(title), studio.settings.megapixels)
    inputs = studio.inputs(title, override.sd_vae, **pictures)
    job = Job(settings, inputs, owner_of(request), asked.force_task_id or f"task({title})")
    return job, await studio.draw(job)


def _draws(app: FastAPI, studio: Studio) -> None:
    reading = asyncio.Lock()  # large pictures take much memory: one at a time

    async def answered(asked: Asked, request: Request, **pictures: Path) -> dict[str, Any]:
        job, answer = await _drawn(studio, asked, request, **pictures)
        return await run_in_threadpool(answer_json, asked, answer, job)

    @app.post(f"{API}/txt2img")
    async def txt2img(asked: Txt2Img, request: Request) -> dict[str, Any]:
        return await answered(asked, request)

    @app.post(f"{API}/img2img")
    async def img2img(asked: Img2Img, request: Request) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            sent = {"init": asked.init_images[0]} | ({"mask": asked.mask} if asked.mask else {})
            async with reading:
                pictures = {
                    name: await run_in_threadpool(received, text, Path(folder), name)
                    for name, text in sent.items()
                }
            return await answered(asked, request, **pictures)

    @app.get(f"{API}/progress")
    async def progress() -> dict[str, Any]:
        jobs = list(studio.desk.jobs)
        return progress_json(jobs[0] if jobs else None, max(0, len(jobs) - 1), time.time())

    @app.post(f"{API}/interrupt")
    @app.post(f"{API}/skip")
    async def interrupt(request: Request) -> dict[str, Any]:
        studio.desk.interrupt(owner_of(request))
        return {}

    @app.post(f"{API}/png-info")
    def png_info(sent: Text) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            parameters = text_of(sent.image, Path(folder), "image")
        text = parse_infotext(parameters)
        fields = {"Prompt": text.prompt, "Negative prompt": text.negative_prompt, **text.fields}
        return {
            "info": parameters,
            "items": {"parameters": parameters} if parameters else {},
            "parameters": fields if parameters else {},
        }


def _lists(app: FastAPI, studio: Studio) -> None:
    found: dict[str, Callable[[Shelf, str], Any]] = {
        "sd-models": lambda shelf, _: listings.models(shelf),
        "sd-vae": lambda shelf, _: listings.vaes(shelf),
        "samplers": lambda *_: listings.samplers(),
        "schedulers": lambda *_: listings.schedules(),
        "upscalers": lambda *_: listings.upscalers(),
        "latent-upscale-modes": lambda *_: listings.latent_upscalers(),
        "loras": lambda shelf, _: listings.adapters(shelf),
        "embeddings": listings.embeddings,
        "prompt-styles": listings.styles,
        "scripts": lambda *_: {"txt2img": [], "img2img": []},
        "cmd-flags": lambda *_: {},
        "memory": lambda *_: listings.memory(),
        **dict.fromkeys(EMPTY, lambda *_: []),
    }
    for name, listing in found.items():
        app.add_api_route(f"{API}/{name}", _listed(studio, listing), methods=["GET"])


def _listed(studio: Studio, listing: Callable[[Shelf, str], Any]) -> Callable[[], Any]:
    async def listed() -> Any:
        return await run_in_threadpool(listing, studio.shelf, studio.model)

    return listed


def _chooses(app: FastAPI, studio: Studio) -> None:
    @app.get(f"{API}/options")
    async def options() -> dict[str, Any]:
        told = {
            "samples_format": "png",
            "sd_model_checkpoint": studio.model,
            "sd_vae": studio.vae or "Automatic",
            "CLIP_stop_at_last_layers": studio.shown_clip_skip(),
        }
        sha256 = await run_in_threadpool(listings.known_hash, studio.shelf.models[studio.model])
        return {**told, "sd_checkpoint_hash": sha256 or ""}

    @app.post(f"{API}/options")
    async def choose(options: dict[str, Any]) -> dict[str, Any]:
        studio.choose(options)
        return {}

    async def refresh() -> dict[str, Any]:
        studio.fill(await run_in_threadpool(look_around, studio.settings))
        return {}

    for name in AGAIN:
        app.add_api_route(f"{API}/refresh-{name}", refresh, methods=["POST"])

    @app.post(f"{API}/unload-checkpoint")
    async def unload() -> dict[str, Any]:
        await studio.unload()
        return {}

    @app.post(f"{API}/reload-checkpoint")
    def reload() -> dict[str, Any]:
        return {}


def _openai(app: FastAPI, studio: Studio) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        rows = [
            {"id": name, "object": "model", "created": 0, "owned_by": "aid"} for name in studio.shelf.models
        ]
        return {"object": "list", "data": rows}

    @app.post("/v1/images/generations")
    async def generations(asked: Images, request: Request) -> dict[str, Any]:
        model = studio.model
        with suppress(SettingsError):
            model = studio.shelf.model(asked.model)
        width, _, height = (asked.size or "").partition("x")
        size = {"width": int(width), "height": int(height)} if height else {}
        told = Txt2Img(
            prompt=asked.prompt,
            negative_prompt=studio.usual_negative(model),
            batch_size=asked.n,
            override_settings=Override(sd_model_checkpoint=model),
            **size,
        )
        job, answer = await _drawn(studio, told, request)
        images = await run_in_threadpool(packed, answer)
        return {"created": int(job.began), "data": [{"b64_json": image} for image in images]}


def _page(app: FastAPI, studio: Studio) -> None:
    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/studio")
    async def told() -> dict[str, Any]:
        """What the page shows."""
        usual = studio.usual(studio.model)
        shown = ("sampler", "steps", "cfg_scale", "width", "height")
        return {
            "model": studio.model,
            "models": [*studio.shelf.models],
            "usual": {
                "negative_prompt": studio.usual_negative(studio.model),
                **{name: usual[name] for name in shown if name in usual},
            },
            "samplers": [row["name"] for row in listings.samplers()],
            "styles": [row["name"] for row in listings.styles(studio.shelf, studio.model)],
        }

    @app.get("/studio/styles/{name}.png")
    async def sample(name: str) -> Response:
        """The sheet that the model itself has drawn of a style."""
        release = studio.shelf.release(studio.model)
        file = release.sheet(name) if release else None
        return FileResponse(file) if file else refused(404, f"no sample of {name}")

    app.mount("/page", StaticFiles(directory=PAGE))


def owner_of(request: Request) -> str:
    """Whose jobs an interrupt ends: as long as there are no accounts, those of one address."""
    return request.client.host if request.client else ""
