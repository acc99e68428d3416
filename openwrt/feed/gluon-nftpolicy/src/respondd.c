/* SPDX-License-Identifier: BSD-2-Clause */
/* Provider of respondd: nodeinfo.software.nftpolicy has the policy of the image, statistics.nftpolicy the guard's state. */

#include <respondd.h>

#include <json-c/json.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#ifndef PLAN
#define PLAN "/usr/share/nftpolicy/plan"
#endif

static struct json_object *within(const char *key, struct json_object *value)
{
	struct json_object *outer = json_object_new_object();

	json_object_object_add(outer, key, value);
	return outer;
}

/* The policy's name, and the time of its file: the image build sets it, after the proof. */
static struct json_object *nodeinfo(void)
{
	struct json_object *policy = json_object_new_object();
	char name[64], written[32];
	struct stat status;
	FILE *plan = fopen(PLAN, "r");

	if (!plan)
		return policy;
	if (fscanf(plan, "policy %63s", name) == 1)
		json_object_object_add(policy, "policy", json_object_new_string(name));
	if (!fstat(fileno(plan), &status) && strftime(written, sizeof(written), "%FT%TZ", gmtime(&status.st_mtime)))
		json_object_object_add(policy, "proved", json_object_new_string(written));
	fclose(plan);
	return within("software", within("nftpolicy", policy));
}

/* The kernel's table: `held` if a chain of the last hook drops by default, `dropped` by uplink. */
static struct json_object *statistics(void)
{
	struct json_object *state = json_object_new_object(), *dropped = json_object_new_object();
	bool held = false, blocked = false;
	char line[512], chain[64] = "", counter[64] = "", *suffix;
	long long packets;
	FILE *nft = popen("exec nft list table inet nftpolicy 2>/dev/null", "r");

	while (nft && fgets(line, sizeof(line), nft)) {
		if (sscanf(line, " packets %lld", &packets) == 1) {
			suffix = strrchr(counter, '.');
			if (suffix && !strcmp(suffix, ".dropped")) {
				*suffix = 0;
				json_object_object_add(dropped, counter, json_object_new_int64(packets));
			}
		}
		if (sscanf(line, " counter %63s", counter) != 1)
			*counter = 0;
		sscanf(line, " chain %63s", chain);
		if (strstr(line, "hook postrouting") && strstr(line, "policy drop;")) {
			held |= !strcmp(chain, "guard") || !strcmp(chain, "block");
			blocked |= !strcmp(chain, "block");
		}
	}
	if (nft)
		pclose(nft);
	json_object_object_add(state, "held", json_object_new_boolean(held));
	json_object_object_add(state, "blocked", json_object_new_boolean(blocked));
	json_object_object_add(state, "dropped", dropped);
	return within("nftpolicy", state);
}

__attribute__((visibility("default"))) const struct respondd_provider_info respondd_providers[] = {
	{ "nodeinfo", nodeinfo },
	{ "statistics", statistics },
	{},
};
