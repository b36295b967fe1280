// SPDX-License-Identifier: GPL-2.0
/* Binds to the device, and offers what it can do as files in the device's folder in sysfs. */
#include <linux/bits.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>

#include "coherent_memory.h"

#define NAME "coherent_memory"

/* BARs by number, and registers of BAR 0: docs/testing.md. */
#define BAR_REGISTERS 0
#define BAR_MEMORY 4
#define REG_MAGIC 0xf00000
#define REG_DOORBELL 0xf00004
#define REG_DMA_SOURCE 0xf00010
#define REG_DMA_DESTINATION 0xf00018
#define REG_DMA_LENGTH 0xf00020
#define REG_DMA_CONTROL 0xf00028

/* "COHD" */
#define MAGIC 0x44484f43
#define DMA_GO 1
/* Of an address for DMA: the rest is an offset in the device's memory. */
#define DMA_LOCAL BIT_ULL(63)

#define MAX_VECTORS 128
#define BUFFER_SIZE SZ_64K

static unsigned long long usable;
module_param(usable, ullong, 0444);
MODULE_PARM_DESC(usable, "bytes of BAR 4 that are memory; 0 is all of it");

static struct coherent *of(struct device *dev)
{
	return dev_get_drvdata(dev);
}

static ssize_t nodes_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct coherent *coherent = of(dev);
	struct domain *domain;
	int length = 0;
	unsigned int i;

	mutex_lock(&coherent->lock);
	for (i = 0; i < coherent->domain_count; i++) {
		domain = &coherent->domains[i];
		length += sysfs_emit_at(text, length, "%u %d %#llx %llu\n", domain->pxm,
					domain->node, domain->start, domain->size);
	}
	mutex_unlock(&coherent->lock);
	return length;
}
static DEVICE_ATTR_RO(nodes);

static ssize_t add_store(struct device *dev, struct device_attribute *attr, const char *text,
			 size_t length)
{
	u64 size;
	int error = kstrtou64(text, 0, &size);

	if (!error)
		error = coherent_add(of(dev), size);
	return error ?: length;
}
static DEVICE_ATTR_WO(add);

static ssize_t remove_store(struct device *dev, struct device_attribute *attr, const char *text,
			    size_t length)
{
	int node;
	int error = kstrtoint(text, 0, &node);

	if (!error)
		error = coherent_remove(of(dev), node);
	return error ?: length;
}
static DEVICE_ATTR_WO(remove);

static ssize_t source_show(struct device *dev, struct device_attribute *attr, char *text)
{
	static const char *const names[] = {
		[SOURCE_NONE] = "none",
		[SOURCE_GI] = "gi",
		[SOURCE_DSD] = "dsd",
	};

	return sysfs_emit(text, "%s\n", names[of(dev)->source]);
}
static DEVICE_ATTR_RO(source);

static ssize_t coherent_memory_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct pci_dev *pdev = of(dev)->pdev;

	return sysfs_emit(text, "%#llx %llu\n", (u64)pci_resource_start(pdev, BAR_MEMORY),
			  (u64)pci_resource_len(pdev, BAR_MEMORY));
}
static DEVICE_ATTR_RO(coherent_memory);

static ssize_t interrupts_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct coherent *coherent = of(dev);
	int length = 0;
	unsigned int i;

	for (i = 0; i < coherent->vectors; i++)
		length += sysfs_emit_at(text, length, "%u %d\n", i,
					atomic_read(&coherent->interrupts[i]));
	return length;
}
static DEVICE_ATTR_RO(interrupts);

/* Registers of ours are in the simulated device alone. */
static bool is_simulated(struct coherent *coherent)
{
	return pci_resource_len(coherent->pdev, BAR_REGISTERS) >= SZ_16M &&
	       readl(coherent->registers + REG_MAGIC) == MAGIC;
}

static ssize_t ring_store(struct device *dev, struct device_attribute *attr, const char *text,
			  size_t length)
{
	struct coherent *coherent = of(dev);
	u32 vector;
	int error = kstrtou32(text, 0, &vector);

	if (error)
		return error;
	if (!is_simulated(coherent))
		return -ENODEV;
	writel(vector, coherent->registers + REG_DOORBELL);
	return length;
}
static DEVICE_ATTR_WO(ring);

/* The device calls its own memory by offsets. */
static u64 dma_address(struct coherent *coherent, u64 address)
{
	u64 start = pci_resource_start(coherent->pdev, BAR_MEMORY);
	u64 size = pci_resource_len(coherent->pdev, BAR_MEMORY);

	if (address >= start && address - start < size)
		return DMA_LOCAL | (address - start);
	return address;
}

static ssize_t dma_store(struct device *dev, struct device_attribute *attr, const char *text,
			 size_t length)
{
	/* By what the control register reads as: idle, done, and why it is not. */
	static const int errors[] = { -EIO, 0, -EFAULT, -EFAULT, -E2BIG, -EPERM };
	struct coherent *coherent = of(dev);
	u64 source, destination, size;
	u32 status;

	if (sscanf(text, "%lli %lli %lli", &source, &destination, &size) != 3)
		return -EINVAL;
	if (!is_simulated(coherent))
		return -ENODEV;
	mutex_lock(&coherent->lock);
	writeq(dma_address(coherent, source), coherent->registers + REG_DMA_SOURCE);
	writeq(dma_address(coherent, destination), coherent->registers + REG_DMA_DESTINATION);
	writeq(size, coherent->registers + REG_DMA_LENGTH);
	writel(DMA_GO, coherent->registers + REG_DMA_CONTROL);
	/* The device is done when it answers. */
	status = readl(coherent->registers + REG_DMA_CONTROL);
	mutex_unlock(&coherent->lock);
	if (status != 1)
		dev_err(dev, "DMA of %#llx bytes from %#llx to %#llx: status %u\n", size, source,
			destination, status);
	return (status < ARRAY_SIZE(errors) ? errors[status] : -EIO) ?: length;
}
static DEVICE_ATTR_WO(dma);

static ssize_t buffer_address_show(struct device *dev, struct device_attribute *attr, char *text)
{
	return sysfs_emit(text, "%#llx\n", (u64)virt_to_phys(of(dev)->buffer));
}
static DEVICE_ATTR_RO(buffer_address);

static ssize_t buffer_read(struct file *file, struct kobject *kobject,
			   struct bin_attribute *attribute, char *data, loff_t offset,
			   size_t length)
{
	struct coherent *coherent = of(kobj_to_dev(kobject));

	return memory_read_from_buffer(data, length, &offset, coherent->buffer,
				       coherent->buffer_size);
}

static ssize_t buffer_write(struct file *file, struct kobject *kobject,
			    struct bin_attribute *attribute, char *data, loff_t offset,
			    size_t length)
{
	struct coherent *coherent = of(kobj_to_dev(kobject));

	if (offset < 0 || offset > coherent->buffer_size ||
	    length > coherent->buffer_size - offset)
		return -ENOSPC;
	memcpy(coherent->buffer + offset, data, length);
	return length;
}
static BIN_ATTR_RW(buffer, BUFFER_SIZE);

static struct attribute *coherent_attributes[] = {
	&dev_attr_nodes.attr,
	&dev_attr_add.attr,
	&dev_attr_remove.attr,
	&dev_attr_source.attr,
	&dev_attr_coherent_memory.attr,
	&dev_attr_interrupts.attr,
	&dev_attr_ring.attr,
	&dev_attr_dma.attr,
	&dev_attr_buffer_address.attr,
	NULL,
};

static struct bin_attribute *coherent_bin_attributes[] = {
	&bin_attr_buffer,
	NULL,
};

/* In a folder of their own: PCI devices have a file "remove" already, and may have others. */
static const struct attribute_group coherent_group = {
	.name = NAME,
	.attrs = coherent_attributes,
	.bin_attrs = coherent_bin_attributes,
};

static const struct attribute_group *coherent_groups[] = {
	&coherent_group,
	NULL,
};

static irqreturn_t coherent_interrupt(int irq, void *count)
{
	atomic_inc(count);
	return IRQ_HANDLED;
}

static int set_up_interrupts(struct coherent *coherent)
{
	struct pci_dev *pdev = coherent->pdev;
	int vectors = pci_msix_vec_count(pdev);
	unsigned int i;
	int error;

	if (vectors <= 0) {
		dev_info(&pdev->dev, "no MSI-X\n");
		return 0;
	}
	vectors = pci_alloc_irq_vectors(pdev, 1, min(vectors, MAX_VECTORS), PCI_IRQ_MSIX);
	if (vectors < 0)
		return vectors;
	coherent->interrupts = kcalloc(vectors, sizeof(*coherent->interrupts), GFP_KERNEL);
	if (!coherent->interrupts) {
		pci_free_irq_vectors(pdev);
		return -ENOMEM;
	}
	for (i = 0; i < vectors; i++) {
		error = request_irq(pci_irq_vector(pdev, i), coherent_interrupt, 0, NAME,
				    &coherent->interrupts[i]);
		if (error)
			break;
		coherent->vectors++;
	}
	return error;
}

static void tear_down_interrupts(struct coherent *coherent)
{
	while (coherent->vectors) {
		coherent->vectors--;
		free_irq(pci_irq_vector(coherent->pdev, coherent->vectors),
			 &coherent->interrupts[coherent->vectors]);
	}
	if (coherent->interrupts)
		pci_free_irq_vectors(coherent->pdev);
	kfree(coherent->interrupts);
	coherent->interrupts = NULL;
}

static void find_memory(struct coherent *coherent)
{
	u64 size = pci_resource_len(coherent->pdev, BAR_MEMORY);

	coherent->memory_start = pci_resource_start(coherent->pdev, BAR_MEMORY);
	coherent->memory_size = usable && usable < size ? usable : size;
	if (!size)
		dev_info(&coherent->pdev->dev, "no coherent memory\n");
}

static int coherent_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct coherent *coherent = devm_kzalloc(&pdev->dev, sizeof(*coherent), GFP_KERNEL);
	int error;

	if (!coherent)
		return -ENOMEM;
	coherent->pdev = pdev;
	error = devm_mutex_init(&pdev->dev, &coherent->lock);
	if (!error)
		error = pcim_enable_device(pdev);
	if (error)
		return error;
	/* BAR 0 alone: what is requested of BAR 4 could not become memory. */
	coherent->registers = pcim_iomap_region(pdev, BAR_REGISTERS, NAME);
	if (IS_ERR(coherent->registers))
		return PTR_ERR(coherent->registers);
	coherent->buffer_size = BUFFER_SIZE;
	coherent->buffer = (void *)devm_get_free_pages(&pdev->dev, GFP_KERNEL | __GFP_ZERO,
						       get_order(BUFFER_SIZE));
	if (!coherent->buffer)
		return -ENOMEM;
	pci_set_master(pdev);
	pci_set_drvdata(pdev, coherent);
	find_memory(coherent);
	coherent_find_domains(coherent);
	error = set_up_interrupts(coherent);
	if (error)
		tear_down_interrupts(coherent);
	return error;
}

static void coherent_unbind(struct pci_dev *pdev)
{
	struct coherent *coherent = pci_get_drvdata(pdev);

	coherent_remove_all(coherent);
	pci_clear_master(pdev);
	tear_down_interrupts(coherent);
}

static const struct pci_device_id coherent_ids[] = {
	/* GH200 480GB, which is what the simulated device says it is. */
	{ PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, 0x2342) },
	{}
};
MODULE_DEVICE_TABLE(pci, coherent_ids);

static struct pci_driver coherent_driver = {
	.name = NAME,
	.id_table = coherent_ids,
	.probe = coherent_probe,
	.remove = coherent_unbind,
	.dev_groups = coherent_groups,
};
module_pci_driver(coherent_driver);

MODULE_DESCRIPTION("Memory of a device as NUMA memory");
MODULE_LICENSE("GPL");
