// SPDX-License-Identifier: GPL-2.0
/*
 * Which proximity domains are a device's own. There are two ways to tell a driver, and real ones
 * look for them in this order:
 *
 * 1. Generic initiator entries of the SRAT that name the device's segment and bus (ACPI 6.5, section
 *    5.2.16.6). They are looked at for function 0 of device 0 alone, and then device and
 *    function in the entry do not matter.
 * 2. Properties of the device's ACPI node: the first domain and how many there are.
 */
#include <linux/acpi.h>
#include <linux/numa.h>
#include <linux/property.h>

#include "coherent_memory.h"

/* ACPI 6.5, table 5.65: what a device handle is. */
#define HANDLE_PCI 1

static void add_domain(struct coherent *coherent, u32 pxm)
{
	struct domain *domain;

	if (coherent->domain_count == MAX_DOMAINS) {
		dev_warn(&coherent->pdev->dev, "more than %d proximity domains: %u is left out\n",
			 MAX_DOMAINS, pxm);
		return;
	}
	domain = &coherent->domains[coherent->domain_count++];
	domain->pxm = pxm;
	domain->node = pxm <= INT_MAX ? pxm_to_node(pxm) : NUMA_NO_NODE;
}

static void take_initiator(struct coherent *coherent,
			   const struct acpi_srat_generic_affinity *entry)
{
	const u8 *handle = entry->device_handle;
	u16 segment = handle[0] | handle[1] << 8;

	if (!(entry->flags & ACPI_SRAT_GENERIC_AFFINITY_ENABLED) ||
	    entry->device_handle_type != HANDLE_PCI)
		return;
	if (segment == pci_domain_nr(coherent->pdev->bus) &&
	    handle[2] == coherent->pdev->bus->number)
		add_domain(coherent, entry->proximity_domain);
}

static void find_initiators(struct coherent *coherent)
{
	const struct acpi_subtable_header *entry;
	struct acpi_table_header *srat;
	u32 offset = sizeof(struct acpi_table_srat);

	if (coherent->pdev->devfn || ACPI_FAILURE(acpi_get_table(ACPI_SIG_SRAT, 0, &srat)))
		return;
	while (srat->length >= sizeof(*entry) && offset <= srat->length - sizeof(*entry)) {
		entry = (void *)srat + offset;
		if (entry->length < sizeof(*entry) || entry->length > srat->length - offset) {
			dev_err(&coherent->pdev->dev, "SRAT: bad entry at offset %#x\n", offset);
			break;
		}
		if (entry->type == ACPI_SRAT_TYPE_GENERIC_AFFINITY &&
		    entry->length >= sizeof(struct acpi_srat_generic_affinity))
			take_initiator(coherent, (const void *)entry);
		offset += entry->length;
	}
	acpi_put_table(srat);
}

static void find_properties(struct coherent *coherent)
{
	bool nvidia = coherent->pdev->vendor == PCI_VENDOR_ID_NVIDIA;
	const char *start_name = nvidia ? "nvidia,gpu-mem-pxm-start" : "dev-mem-pxm-start";
	const char *count_name = nvidia ? "nvidia,gpu-mem-pxm-count" : "dev-mem-pxm-count";
	struct device *dev = &coherent->pdev->dev;
	u64 start, count, i;

	if (device_property_read_u64(dev, start_name, &start) ||
	    device_property_read_u64(dev, count_name, &count))
		return;
	if (!count || count > MAX_DOMAINS || start > U32_MAX - count) {
		dev_err(dev, "%s %llu and %s %llu make no sense\n", start_name, start, count_name,
			count);
		return;
	}
	for (i = 0; i < count; i++)
		add_domain(coherent, start + i);
}

void coherent_find_domains(struct coherent *coherent)
{
	struct device *dev = &coherent->pdev->dev;
	/* Ten digits and a space each. */
	char text[MAX_DOMAINS * 11 + 1] = "";
	size_t length = 0;
	unsigned int i;

	find_initiators(coherent);
	if (coherent->domain_count) {
		coherent->source = SOURCE_GI;
	} else {
		find_properties(coherent);
		if (coherent->domain_count)
			coherent->source = SOURCE_DSD;
	}
	if (coherent->source == SOURCE_NONE) {
		dev_info(dev, "no proximity domains\n");
		return;
	}
	for (i = 0; i < coherent->domain_count; i++)
		length += scnprintf(text + length, sizeof(text) - length, " %u",
				    coherent->domains[i].pxm);
	dev_info(dev, "proximity domains from %s:%s\n",
		 coherent->source == SOURCE_GI ? "generic initiators" : "device properties", text);
}
