"""What clients of A1111 and of OpenAI ask of the studio, by those clients themselves where there are any."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import webuiapi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_backend_client.api.a1111_webservice import A1111Webservice
from sd_backend_client.api.shared_data.diffusion_params import DiffusionParams

from aid import starter
from aid.core.lineage import METADATA_KEY
from aid.core.workbench import Workbench
from aid.generate.again import again
from aid.generate.run import one_off
from aid.generate.settings import GenerateInputs, GenerateSettings
from aid.sd.picture.infotext import parse_infotext, shot_of
from aid.studio.studio import Studio

Served = tuple[Studio, str]
SMALL: dict[str, Any] = {"steps": 3, "width": 32, "height": 32, "seed": 5}
IDLE = {"progress": 0.0, "job": "", "job_count": 0}


def post(served: Served, path: str, body: Any, **words: Any) -> requests.Response:
    return requests.post(f"{served[1]}{path}", json=body, timeout=60, **words)


def drawn(served: Served, body: dict[str, Any], kind: str = "txt2img") -> list[Image.Image]:
    answer = post(served, f"/sdapi/v1/{kind}", body)
    assert answer.ok, answer.text
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in answer.json()["images"]]


def in_base64(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "png")
    return base64.b64encode(stream.getvalue()).decode()


@pytest.fixture
def client(studio: Served) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(host="127.0.0.1", port=int(studio[1].rpartition(":")[2]), sampler="Euler a")


def test_a_picture_is_the_one_that_the_command_draws(studio: Served, tmp_path: Any) -> None:
    body = {**SMALL, "prompt": "a (smile:1.3)", "negative_prompt": "frown", "sampler_name": "DPM++ 2M Karras"}
    (picture,) = drawn(studio, body)
    told = {
        "prompt": "a (smile:1.3)",
        "negative_prompt": "frown",
        "sampler": "DPM++ 2M",
        "schedule": "Karras",
    }
    inputs = GenerateInputs(checkpoint=studio[0].shelf.models[studio[0].model])
    (file,) = one_off(GenerateSettings(**told, **SMALL), inputs, tmp_path, Workbench(threads=1))
    ours = Image.open(file)
    assert picture.tobytes() == ours.tobytes()
    assert picture.info["parameters"] == ours.info["parameters"]
    assert json.loads(picture.info[METADATA_KEY])["nodes"]


def test_a_model_that_is_warm_draws_the_same_again(studio: Served) -> None:
    title = next(name for name in studio[0].shelf.models if name.startswith("AID"))
    body = {**SMALL, "prompt": "by lorelei", "override_settings": {"sd_model_checkpoint": title}}
    first, other, again = (drawn(studio, one)[0] for one in (body, {**SMALL, "prompt": "a"}, body))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert {"AID starter v1.0", "lively"} <= set(studio[0].warm.names())
    assert studio[0].model != title  # it was meant for the request alone


def test_webuiapi_draws_and_redraws(client: webuiapi.WebUIApi) -> None:
    words = {"steps": 3, "width": 32, "height": 32, "seed": 5}
    answer = client.txt2img(prompt="smile", batch_size=2, n_iter=2, **words)
    assert answer.info["all_seeds"] == [5, 6, 7, 8] and len(answer.images) == 4
    redrawn = client.img2img(images=[answer.image], prompt="frown", denoising_strength=0.5, **words)
    assert redrawn.image.size == (32, 32) and redrawn.image.tobytes() != answer.image.tobytes()
    assert redrawn.info["denoising_strength"] == 0.5
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    half = client.img2img(images=[answer.image], mask_image=mask, mask_blur=0, prompt="frown", **words)
    right = (24, 0, 32, 32)
    assert half.image.crop(right).tobytes() == answer.image.crop(right).tobytes()
    assert half.image.tobytes() != answer.image.tobytes()
    brushed = Image.new("RGB", mask.size, "blue")
    brushed.putalpha(mask)
    also = client.img2img(images=[answer.image], mask_image=brushed, mask_blur=0, prompt="frown", **words)
    assert also.image.tobytes() == half.image.tobytes()
    larger = client.txt2img(prompt="smile", enable_hr=True, hr_scale=2, denoising_strength=0.5, **words)
    assert larger.image.size == (64, 64) and "Hires upscale: 2" in larger.info["infotexts"][0]
    assert client.png_info(larger.image).info == larger.info["infotexts"][0]


def test_novelais_pictures_tell_their_infotext(studio: Served) -> None:
    texts, stream = PngInfo(), io.BytesIO()
    comment = {"steps": 28, "sampler": "k_euler", "seed": 7, "scale": 11.0, "uc": "low\ud800res"}
    told = {"Description": "{{1girl}}", "Software": "NovelAI", "Comment": json.dumps(comment)}
    for name, value in told.items():
        texts.add_text(name, value)
    Image.new("RGB", (32, 48)).save(stream, "png", pnginfo=texts)
    packed = base64.b64encode(stream.getvalue()).decode()
    answer = post(studio, "/sdapi/v1/png-info", {"image": packed}).json()
    fields = "Steps: 28, Sampler: Euler, CFG scale: 11.0, Seed: 7, Size: 32x48, Clip skip: 2, ENSD: 31337"
    assert answer["info"] == "{{1girl}}\nNegative prompt: low?res\n" + fields
    assert answer["parameters"]["Prompt"] == "{{1girl}}" and answer["parameters"]["Sampler"] == "Euler"


def test_webuiapi_chooses_a_model(client: webuiapi.WebUIApi, studio: Served) -> None:
    before = studio[0].model
    (other,) = [name for name in client.util_get_model_names() if name != before]
    client.util_set_model(other)
    client.util_wait_for_ready()
    assert client.util_get_current_model() == other == studio[0].model
    client.util_set_model(before)
    client.set_options(
        {"sd_vae": "other.safetensors", "samples_format": "png", "CLIP_stop_at_last_layers": 2}
    )
    assert client.get_options()["sd_vae"] == "other.safetensors"
    assert client.get_options()["CLIP_stop_at_last_layers"] == 2
    client.set_options({"sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1})
    assert not studio[0].vae


def test_the_strictest_client_reads_every_list(studio: Served) -> None:
    service = A1111Webservice(studio[1])
    assert {one.title for one in service.get_models()} == set(studio[0].shelf.models)
    assert [one.model_name for one in service.get_vae()] == ["other.safetensors"]
    assert "Euler a" in [one.name for one in service.get_samplers()]
    assert service.get_upscalers() and service.get_latent_upscale_modes()
    assert service.get_config()["sd_model_checkpoint"] in studio[0].shelf.models
    assert not service.get_loras() and not service.get_script_info()
    service.refresh_checkpoints()
    service.refresh_vae()
    service.refresh_loras()
    answer = service.txt2img(DiffusionParams(prompt="smile", scheduler="karras", **SMALL))
    assert answer["images"][0].size == (32, 32) and answer["info"].all_seeds == [5]
    redrawn = service.img2img(answer["images"][0], None, DiffusionParams(prompt="frown", **SMALL))
    assert redrawn["info"].denoising_strength == 0.75


def test_a_picture_made_from_another_is_drawn_again_from_the_clients_own_file(
    studio: Served, tmp_path: Path
) -> None:
    sent, made = tmp_path / "sent.jpg", tmp_path / "made.png"
    Image.linear_gradient("L").resize((40, 32)).save(sent, comment="private")
    body = {**SMALL, "prompt": "a", "init_images": [base64.b64encode(sent.read_bytes()).decode()]}
    answer = post(studio, "/sdapi/v1/img2img", body)
    assert b"private" not in base64.b64decode(answer.json()["images"][0])
    made.write_bytes(base64.b64decode(answer.json()["images"][0]))
    model = studio[0].shelf.models[studio[0].model]
    file = again(made, [model, sent], tmp_path / "again", Workbench(threads=1))
    assert file.read_bytes() == made.read_bytes()


def test_options_that_are_sent_back_change_nothing(client: webuiapi.WebUIApi, studio: Served) -> None:
    studio[0].choose({"CLIP_stop_at_last_layers": 0})
    client.set_options(client.get_options())
    assert (studio[0].vae, studio[0].clip_skip) == ("", 0)


def test_what_clients_leave_empty_or_break_into_lines(studio: Served) -> None:
    sent = base64.encodebytes(base64.b64decode(in_base64(Image.new("RGB", (32, 32))))).decode()
    body = {**SMALL, "prompt": "a", "sampler_name": "", "scheduler": "", "init_images": [sent]}
    assert drawn(studio, body, "img2img")


def test_styles_are_those_of_the_release(studio: Served) -> None:
    studio[0].choose({"sd_model_checkpoint": "AID starter v1.0 [0123456789]"})
    styles = [one.name for one in A1111Webservice(studio[1]).get_styles()]
    told = requests.get(f"{studio[1]}/studio", timeout=9).json()
    assert "lorelei" in styles and told["styles"] == styles and told["usual"]["sampler"] == "Euler a"
    (picture,) = drawn(studio, {**SMALL, "prompt": "smile", "styles": ["lorelei"]})
    assert picture.info["parameters"].startswith("by lorelei, smile\nSteps")
    assert told["usual"]["negative_prompt"] == "starterneg"
    body = {"model": studio[0].model, "prompt": "by lorelei", "size": "32x32"}
    (image,) = post(studio, "/v1/images/generations", body).json()["data"]
    recommended = Image.open(io.BytesIO(base64.b64decode(image["b64_json"])))
    assert recommended.info["parameters"].startswith("by lorelei\nNegative prompt: starterneg\nSteps")
    sample = requests.get(f"{studio[1]}/studio/styles/lorelei.png", timeout=9)
    assert sample.content == (starter.shipped("release/samples/lorelei.png")).read_bytes()
    assert requests.get(f"{studio[1]}/studio/styles/..%2Fall.png", timeout=9).status_code == 404
    studio[0].choose({"sd_model_checkpoint": "lively"})


def test_idle_is_what_clients_wait_for(studio: Served) -> None:
    told = requests.get(f"{studio[1]}/sdapi/v1/progress", timeout=9).json()
    flat = {**told, **told["state"]}
    assert {name: flat[name] for name in IDLE} == IDLE


def test_progress_interruption_and_a_full_queue(studio: Served) -> None:
    long = {**SMALL, "prompt": "smile", "steps": 900, "width": 64, "height": 64, "batch_size": 8, "n_iter": 8}
    answers: list[requests.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(studio, "/sdapi/v1/txt2img", long)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    seen = requests.get(f"{studio[1]}/sdapi/v1/progress", timeout=9).json()
    refused = post(studio, "/sdapi/v1/txt2img", long)
    assert seen["state"]["sampling_steps"] == 900 and 0 <= seen["progress"] < 0.9
    assert seen["state"]["job_count"] == 3 and seen["state"]["job"]
    assert refused.status_code == 429 and "2 requests wait already" in refused.json()["detail"]
    studio[0].desk.interrupt("somebody else")
    time.sleep(0.3)
    assert len(studio[0].desk.jobs) == 3
    post(studio, "/sdapi/v1/interrupt", {})
    for thread in threads:
        thread.join(30)
    assert [len(answer.json()["images"]) < 64 for answer in answers] == [True] * 3
    test_idle_is_what_clients_wait_for(studio)
    assert drawn(studio, {**SMALL, "prompt": "smile"})  # nothing is left behind


def test_an_interrupt_is_heard_whatever_else_waits(studio: Served) -> None:
    long = {**SMALL, "prompt": "smile", "steps": 900, "width": 64, "height": 64, "batch_size": 8, "n_iter": 8}
    asked = [("txt2img", long), *[("unload-checkpoint", {})] * 60]  # more than there are threads for requests
    threads = [
        threading.Thread(target=post, args=(studio, f"/sdapi/v1/{path}", body)) for path, body in asked
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.3 if thread is threads[0] else 0)
    time.sleep(0.5)
    requests.post(f"{studio[1]}/sdapi/v1/interrupt", json={}, timeout=3)
    for thread in threads:
        thread.join(30)
    assert drawn(studio, {**SMALL, "prompt": "smile"})


def test_clip_skip_counts_for_sdxl_where_its_option_says_so(studio: Served) -> None:
    options = {"CLIP_stop_at_last_layers": 2, "sdxl_clip_l_skip": True}
    body = {**SMALL, "prompt": "smile", "refiner_checkpoint": "None", "override_settings": options}
    (text,) = json.loads(post(studio, "/sdapi/v1/txt2img", body).json()["info"])["infotexts"]
    assert "Clip skip: 2, Clip skip SDXL: True" in text


def test_options_of_one_request_that_decide_pixels_count(studio: Served) -> None:
    options = {"emphasis": "No norm", "randn_source": "NV", "eta_noise_seed_delta": 31337, "sd_vae": "none"}
    told = {"use_old_scheduling": True, "use_downcasted_alpha_bar": True, "inpainting_mask_weight": 0.5}
    sent = in_base64(Image.new("RGB", (32, 32)))
    body = {**SMALL, "prompt": "a # note", "init_images": [sent], "override_settings": {**options, **told}}
    (picture,) = drawn(studio, body, "img2img")
    shot = shot_of(parse_infotext(picture.info["parameters"]))
    found = shot.emphasis, shot.noise_source, shot.seed_delta, shot.old_editing, shot.downcast_alphas
    assert found == ("No norm", "NV", 31337, True, True) and shot.source and shot.source.mask_weight == 0.5
    assert shot.prompt == "a"  # A1111 leaves comments out here too
    mask = in_base64(Image.new("L", (32, 32), 255))
    (picture,) = drawn(studio, {**body, "mask": mask, "mask_blur_x": 0, "mask_blur_y": 0}, "img2img")
    assert "Mask blur: 0" in picture.info["parameters"]
    for one, what in (
        ({"mask_blur_x": 9}, "mask_blur_y 4"),
        ({"initial_noise_multiplier": 0.5}, "initial_noise"),
    ):
        answer = post(studio, "/sdapi/v1/img2img", {**body, "mask": mask, **one})
        assert answer.status_code == 422 and what in answer.json()["detail"]
    assert drawn(studio, {**body, "mask_blur_x": 9}, "img2img")  # without a mask there is nothing to soften


def test_what_clients_send_by_default_asks_for_nothing(studio: Served) -> None:
    options = {"randn_source": "GPU", "emphasis": "", "sd_vae": None}
    body = {**SMALL, "prompt": "a", "override_settings": options, "alwayson_scripts": {}, "s_churn": 0}
    sizes = {"seed_resize_from_w": SMALL["width"], "seed_resize_from_h": -1}
    assert drawn(studio, {**body, **sizes}) and drawn(
        studio, {**body, "override_settings": {"randn_source": ""}}
    )


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"s_churn": 1}, "s_churn is asked for, which AID has not"),
        ({"alwayson_scripts": {"ControlNet": {"args": []}}}, "alwayson_scripts is asked for"),
        ({"seed_resize_from_h": 7}, "seed_resize_from_h is 7, and AID resizes no noise"),
        ({"override_settings": {"randn_source": "TPU"}}, "noise_source = 'TPU'"),
        ({"prompt": "a\nNegative prompt: b"}, "begins with 'Negative prompt:'"),
        ({"sampler_name": "Eulr"}, "Did you mean Euler?"),
        ({"steps": 0}, "steps = 0"),
        ({"width": 8000, "height": 8000}, "4.2 megapixels at most"),
        ({"width": 1024, "height": 1024, "enable_hr": True, "hr_scale": 4}, "4.2 megapixels at most"),
        ({"batch_size": 100}, "64 at most"),
        ({"tiling": True}, "tiling"),
        ({"refiner_checkpoint": "refiner"}, "refiner_checkpoint"),
        ({"override_settings": {"sd_model_checkpoint": "livly"}}, "Did you mean lively"),
        ({"override_settings": {"sd_vae": "none.pt"}}, "not a VAE"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a, " * 40_000}, "prompt: String should have at most 100000 characters"),
        ({"cfg_scale": "NaN"}, "cfg_scale"),
        ({"prompt": "<lora:nowhere:1>"}, "nowhere"),
        ({"styles": ["\ud800"]}, "styles.0"),
        ({"force_task_id": "\ud800"}, "force_task_id"),
        ({"enable_hr": True, "hr_checkpoint_name": "another"}, "another model"),
    ],
)
def test_what_is_wrong_is_told(studio: Served, body: dict[str, Any], told: str) -> None:
    answer = post(studio, "/sdapi/v1/txt2img", {**SMALL, "prompt": "a", **body, "auth": "user:secret"})
    assert answer.status_code == 422 and told in answer.json()["detail"]
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("http://127.0.0.1/a.png", "not fetched"),
        ("?", "not base64"),
        (base64.b64encode(b"\x89PNG nothing").decode(), "init"),
        ("", "init"),
    ],
)
def test_pictures_that_are_none_are_told(studio: Served, image: str, told: str) -> None:
    answer = post(studio, "/sdapi/v1/img2img", {**SMALL, "prompt": "a", "init_images": [image]})
    assert answer.status_code == 422 and told in answer.json()["detail"]


def test_no_place_of_this_machine_is_told(studio: Served) -> None:
    answer = post(studio, "/sdapi/v1/png-info", {"image": base64.b64encode(b"\x89PNG nothing").decode()})
    assert answer.status_code == 422 and answer.json()["detail"].startswith("image is not a readable picture")


def test_what_a_client_sends_along_is_neither_kept_nor_echoed(studio: Served) -> None:
    sent = Image.new("RGB", (32, 32), "red")
    sent.info["comment"] = "private"
    body = {**SMALL, "prompt": "a", "init_images": [f"data:image/png;base64,{in_base64(sent)}"]}
    answer = post(studio, "/sdapi/v1/img2img", {**body, "url": "http://home", "auth": "user:secret"})
    assert answer.ok and "secret" not in answer.text and "http://home" not in answer.text
    assert answer.json()["parameters"]["init_images"] is None


def test_openai_speakers_get_pictures(studio: Served) -> None:
    body = {"model": "gpt-image-1", "prompt": "a smile", "n": 2, "size": "32x40", "quality": "low"}
    told = post(studio, "/v1/images/generations", body).json()
    sizes = [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).size for one in told["data"]]
    assert sizes == [(32, 40)] * 2 and isinstance(told["created"], int)
    models = requests.get(f"{studio[1]}/v1/models", timeout=9).json()
    assert [one["id"] for one in models["data"]] == [*studio[0].shelf.models]
    studio[0].choose({"sd_model_checkpoint": "AID starter v1.0"})
    short = post(studio, "/v1/images/generations", {"model": "lively", "prompt": "a", "size": "32x32"}).json()
    studio[0].choose({"sd_model_checkpoint": "lively"})
    picture = Image.open(io.BytesIO(base64.b64decode(short["data"][0]["b64_json"])))
    assert "Model: lively," in picture.info["parameters"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"size": "30x32"}, "width = 30"),
        ({"size": "9" * 5000 + "x8"}, "size"),
        ({"size": "8,8"}, "size"),
        ({"prompt": "a " * 60_000}, "100000 characters"),
        ({"n": 65}, "64 at most"),
    ],
)
def test_openai_speakers_are_told_what_is_wrong(studio: Served, body: dict[str, Any], told: str) -> None:
    answer = post(studio, "/v1/images/generations", {"model": "", "prompt": "a", **body})
    assert answer.status_code == 422 and told in answer.json()["error"]["message"]


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.text()),
)
keys = st.sampled_from([
    "prompt", "negative_prompt", "styles", "seed", "subseed", "subseed_strength", "sampler_index",
    "scheduler", "steps", "cfg_scale", "width", "height", "n_iter", "clip_skip", "eta", "hr_scale",
    "denoising_strength", "enable_hr", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "mask",
    "override_settings", "init_images", "inpainting_fill", "resize_mode", "script_name",
])  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys, values, max_size=6), st.sampled_from(["txt2img", "img2img", "options"]))
def test_no_request_breaks_the_studio(studio: Served, body: dict[str, Any], path: str) -> None:
    small = {"steps": 1, "width": 8, "height": 8}
    told = json.dumps({**body, **{key: body.get(key, value) for key, value in small.items()}})
    if isinstance(body.get("steps"), int) and abs(body["steps"]) > 20:
        told = told.replace(str(body["steps"]), "1")
    answer = requests.post(
        f"{studio[1]}/sdapi/v1/{path}",
        told.encode(),
        timeout=60,
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code in (200, 422), answer.text
    studio[0].choose({"sd_model_checkpoint": "lively", "sd_vae": "", "CLIP_stop_at_last_layers": 0})
