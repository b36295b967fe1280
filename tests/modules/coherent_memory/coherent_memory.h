// SPDX-License-Identifier: GPL-2.0
/*
 * Driver of a device whose memory CPUs may cache: makes that memory NUMA memory, as the drivers of
 * real devices do. The device is tests/src/coherent_device.
 */
#ifndef COHERENT_MEMORY_H
#define COHERENT_MEMORY_H

#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/types.h>

/* Eight is what firmware gives a device; a few more do no harm. */
#define MAX_DOMAINS 32

/* How the device's proximity domains were found. */
enum source {
	SOURCE_NONE,
	/* Generic initiators of the SRAT that name the device. */
	SOURCE_GI,
	/* Properties of the device's ACPI node. */
	SOURCE_DSD,
};

/* A proximity domain of the device, and what was added to its node. */
struct domain {
	u32 pxm;
	/* NUMA_NO_NODE if the kernel knows of no such domain. */
	int node;
	/* Address and bytes; nothing was added if size is 0. */
	u64 start;
	u64 size;
	/* What /proc/iomem calls it, for as long as it is there. */
	char *name;
};

struct coherent {
	struct pci_dev *pdev;
	/* BAR 0. */
	void __iomem *registers;
	/* BAR 4: where it begins, and how much of it is memory. */
	u64 memory_start;
	u64 memory_size;

	enum source source;
	unsigned int domain_count;
	/* Guards what was added, and the device's DMA engine. */
	struct mutex lock;
	struct domain domains[MAX_DOMAINS];

	/* RAM of the guest that the device may be told to use. */
	void *buffer;
	size_t buffer_size;

	/* Interrupts that came, by vector. */
	unsigned int vectors;
	atomic_t *interrupts;
};

/* Finds the device's proximity domains and their nodes, and says which and how. */
void coherent_find_domains(struct coherent *coherent);

/* Gives the next free part of the memory to the lowest free node. */
int coherent_add(struct coherent *coherent, u64 size);

/* Takes away what was added to a node. */
int coherent_remove(struct coherent *coherent, int node);

/* Takes away what was added to any node; what cannot leave stays, and is named in the log. */
void coherent_remove_all(struct coherent *coherent);

#endif
