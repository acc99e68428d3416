"""The provider for Gluon's respondd, with a stand-in for json-c that writes text, and the real nft."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nftpolicy.integration.openwrt import tree
from nftpolicy.policy.load import load
from tests import c_helpers
from tests.guarded_lab import GLUON, ROOT
from tests.lab.netns import Namespace

from .router import ROOT as ROUTER_ROOT
from .router import Router

SOURCE = ROOT / "openwrt/feed/gluon-nftpolicy/src/respondd.c"
RESPONDD = """
struct json_object;
struct respondd_provider_info { const char *request; struct json_object *(*provider)(void); };
extern const struct respondd_provider_info respondd_providers[];
"""
JSON_C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct json_object { char text[999]; };
static struct json_object *json_text(const char *text)
{
    struct json_object *made = calloc(1, sizeof(*made));
    strcpy(made->text, text);
    return made;
}
#define json_object_new_object() json_text("{}")
#define json_object_new_boolean(value) json_text((value) ? "true" : "false")
static inline struct json_object *json_object_new_int64(long long value)
{ char text[32]; sprintf(text, "%lld", value); return json_text(text); }
static inline struct json_object *json_object_new_string(const char *value)
{ char text[99]; sprintf(text, "\"%s\"", value); return json_text(text); }
static inline void json_object_object_add(struct json_object *outer, const char *key, struct json_object *value)
{
    char *end = strrchr(outer->text, '}');
    snprintf(end, 500, "%s\"%s\":%.400s}", end - outer->text > 1 ? "," : "", key, value->text);
}
"""
MAIN = r"""
int main(void)
{
    for (const struct respondd_provider_info *each = respondd_providers; each->request; each++)
        puts(each->provider()->text);
    return 0;
}
"""

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("able")]


@pytest.fixture
def provider(tmp_path: Path) -> Path:
    """Compile the provider as a program that prints nodeinfo and statistics."""
    for path, text in (("respondd.h", RESPONDD), ("json-c/json.h", JSON_C)):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    plan = f'-DPLAN="{ROUTER_ROOT}/{tree.PLAN_PATH}"'
    return c_helpers.build(tmp_path, SOURCE.read_text() + MAIN, f"-I{tmp_path}", "-D_GNU_SOURCE", plan)


def test_provider_reports_state_of_the_guard(provider: Path) -> None:
    with Namespace("router") as space:
        router = Router(space, load(GLUON.read_bytes())[0])
        os.utime(router.file(tree.PLAN_PATH), (1767225600, 1767225600))

        def answers() -> tuple[Any, Any]:
            nodeinfo, statistics = map(
                json.loads, space.run([str(provider)], env=router.environment).stdout.splitlines()
            )
            return nodeinfo["software"]["nftpolicy"], statistics["nftpolicy"]

        nodeinfo, statistics = answers()
        assert nodeinfo == {"policy": "gluon-fastd", "proved": "2026-01-01T00:00:00Z"}
        assert statistics == {"held": False, "blocked": False, "dropped": {}}, "the control"
        space.ip("link add br-wan type veth peer name x", "link set br-wan up", "link set x up")
        space.ip("addr add 192.0.2.2/24 dev br-wan", "neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev br-wan")
        router.nftpolicy("apply")
        assert answers()[1] == {"held": True, "blocked": False, "dropped": {"wan": 0}}
        router.ash("-c", "ping -c 1 -W 1 192.0.2.1", check=False)
        assert answers()[1] == {"held": True, "blocked": False, "dropped": {"wan": 1}}
        space.run(["nft", "flush", "ruleset"])
        space.nft(router.file(tree.BLOCK_PATH).read_text())
        assert answers()[1] == {"held": True, "blocked": True, "dropped": {}}
