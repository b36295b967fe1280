// SPDX-License-Identifier: GPL-2.0
/* Adds memory of the device to its nodes and takes it away again. */
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/nodemask.h>
#include <linux/numa.h>
#include <linux/slab.h>

#include "coherent_memory.h"

/* The lowest node that has no memory, neither of ours nor of anybody else. */
static struct domain *free_domain(struct coherent *coherent)
{
	struct domain *lowest = NULL, *domain;
	unsigned int i;

	for (i = 0; i < coherent->domain_count; i++) {
		domain = &coherent->domains[i];
		if (domain->node == NUMA_NO_NODE || domain->size ||
		    node_state(domain->node, N_MEMORY))
			continue;
		if (!lowest || domain->node < lowest->node)
			lowest = domain;
	}
	return lowest;
}

static struct domain *domain_in(struct coherent *coherent, u64 start, u64 size)
{
	struct domain *domain;
	unsigned int i;

	for (i = 0; i < coherent->domain_count; i++) {
		domain = &coherent->domains[i];
		if (domain->size && domain->start < start + size &&
		    start < domain->start + domain->size)
			return domain;
	}
	return NULL;
}

/* Where the next size bytes are free, in whole memory blocks; 0 if they are nowhere. */
static u64 free_memory(struct coherent *coherent, u64 block, u64 size)
{
	u64 start = ALIGN(coherent->memory_start, block);
	u64 end = ALIGN_DOWN(coherent->memory_start + coherent->memory_size, block);
	struct domain *taken;

	while (start < end && size <= end - start) {
		taken = domain_in(coherent, start, size);
		if (!taken)
			return start;
		start = taken->start + taken->size;
	}
	return 0;
}

int coherent_add(struct coherent *coherent, u64 size)
{
	struct device *dev = &coherent->pdev->dev;
	u64 block = memory_block_size_bytes();
	struct domain *domain;
	int error = -ENOSPC;
	char *name;
	u64 start;

	if (!size || !IS_ALIGNED(size, block)) {
		dev_err(dev, "%#llx bytes are not a multiple of a memory block, %#llx\n", size,
			block);
		return -EINVAL;
	}
	/* Whoever loads this may unload it with memory still there, which keeps its name. */
	name = kstrdup("System RAM (coherent_memory)", GFP_KERNEL);
	if (!name)
		return -ENOMEM;

	mutex_lock(&coherent->lock);
	domain = free_domain(coherent);
	start = free_memory(coherent, block, size);
	if (!domain) {
		dev_err(dev, "no free node\n");
	} else if (!start) {
		dev_err(dev, "no %#llx bytes free\n", size);
	} else {
		error = add_memory_driver_managed(domain->node, start, size, name, MHP_NONE);
		if (error)
			dev_err(dev, "cannot add %#llx bytes at %#llx to node %d: %d\n", size, start,
				domain->node, error);
	}
	if (!error) {
		dev_info(dev, "%#llx bytes at %#llx are in node %d\n", size, start, domain->node);
		domain->start = start;
		domain->size = size;
		domain->name = name;
	}
	mutex_unlock(&coherent->lock);
	if (error)
		kfree(name);
	return error;
}

static int remove_from(struct coherent *coherent, struct domain *domain)
{
	int error = offline_and_remove_memory(domain->start, domain->size);

	if (error) {
		dev_err(&coherent->pdev->dev, "%#llx bytes at %#llx stay in node %d: %d\n",
			domain->size, domain->start, domain->node, error);
		return error;
	}
	kfree(domain->name);
	domain->name = NULL;
	domain->start = 0;
	domain->size = 0;
	return 0;
}

int coherent_remove(struct coherent *coherent, int node)
{
	int error = -ENOENT;
	unsigned int i;

	mutex_lock(&coherent->lock);
	for (i = 0; i < coherent->domain_count; i++) {
		if (coherent->domains[i].size && coherent->domains[i].node == node) {
			error = remove_from(coherent, &coherent->domains[i]);
			break;
		}
	}
	mutex_unlock(&coherent->lock);
	return error;
}

void coherent_remove_all(struct coherent *coherent)
{
	unsigned int i;

	mutex_lock(&coherent->lock);
	for (i = 0; i < coherent->domain_count; i++)
		if (coherent->domains[i].size)
			remove_from(coherent, &coherent->domains[i]);
	mutex_unlock(&coherent->lock);
}
