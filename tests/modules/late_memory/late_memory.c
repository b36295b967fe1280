// SPDX-License-Identifier: GPL-2.0
/*
 * Adds a range of physical memory to the NUMA node of a proximity domain when loaded and takes it
 * away again when unloaded, as drivers of devices with memory of their own do.
 */
#include <linux/acpi.h>
#include <linux/memory_hotplug.h>
#include <linux/module.h>
#include <linux/numa.h>
#include <linux/slab.h>

static int pxm = -1;
module_param(pxm, int, 0444);
MODULE_PARM_DESC(pxm, "ACPI proximity domain that the memory belongs to");

static unsigned long long start;
module_param(start, ullong, 0444);
MODULE_PARM_DESC(start, "physical address, a multiple of the memory block size");

static unsigned long long size;
module_param(size, ullong, 0444);
MODULE_PARM_DESC(size, "bytes, a multiple of the memory block size");

/* Owned by /proc/iomem for as long as the memory is there. */
static char *name;

static int __init late_memory_init(void)
{
	int node = pxm_to_node(pxm);
	int error;

	if (node == NUMA_NO_NODE) {
		pr_err("late_memory: no node for proximity domain %d\n", pxm);
		return -ENXIO;
	}
	pr_info("late_memory: proximity domain %d is node %d\n", pxm, node);

	name = kstrdup("System RAM (late_memory)", GFP_KERNEL);
	if (!name)
		return -ENOMEM;
	error = add_memory_driver_managed(node, start, size, name, MHP_NONE);
	if (error) {
		pr_err("late_memory: cannot add %#llx bytes at %#llx to node %d: %d\n",
		       size, start, node, error);
		kfree(name);
	}
	return error;
}

static void __exit late_memory_exit(void)
{
	int error = offline_and_remove_memory(start, size);

	/* Unloading cannot be refused; memory that stays keeps its name. */
	if (error)
		pr_err("late_memory: memory at %#llx stays: %d\n", start, error);
	else
		kfree(name);
}

module_init(late_memory_init);
module_exit(late_memory_exit);

MODULE_DESCRIPTION("Memory that arrives late in a NUMA node");
MODULE_LICENSE("GPL");
