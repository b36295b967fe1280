/* What the guest is told: the memory map, ACPI, SMBIOS. Offsets are those of the ACPI 6.5 and SMBIOS
 * 3.7 specifications and of Xen's description of the PVH start info. */

#include "probe.h"

static uint64_t read32(uint64_t address)
{
    return memory_read(address, 4);
}

static uint64_t read64(uint64_t address)
{
    return memory_read(address, 8);
}

static bool has_bytes(uint64_t address, const char *text)
{
    for (; *text; text++, address++)
        if ((char)memory_read(address, 1) != *text)
            return false;
    return true;
}

static void put_checksum(uint64_t address, uint64_t size)
{
    uint8_t sum = 0;
    for (uint64_t i = 0; i < size; i++)
        sum += memory_read(address + i, 1);
    put_text(sum == 0 ? " sum=ok" : " sum=bad");
}

/* A line with the name, address, size, checksum and bytes of something. */
static void put_record(const char *kind, const char *name, uint64_t address, uint64_t size)
{
    put_text(kind);
    put_text(": ");
    put_text(name);
    put_text(" ");
    put_hex(address);
    put_text(" ");
    put_hex(size);
    put_checksum(address, size);
    put_text(" ");
    put_dump(address, size);
    put_text("\n");
}

void print_memory_map(uint64_t start_info)
{
    uint64_t entry = read64(start_info + START_INFO_MEMORY_MAP);
    uint64_t count = read32(start_info + START_INFO_MEMORY_MAP_COUNT);
    for (uint64_t i = 0; i < count; i++, entry += 24) {
        put_text("memory: ");
        put_hex(read64(entry));
        put_text(" ");
        put_hex(read64(entry + 8));
        put_text(" ");
        put_hex(read32(entry + 16));
        put_text("\n");
    }
}

void print_modules(uint64_t start_info)
{
    uint64_t entry = read64(start_info + START_INFO_MODULES);
    uint64_t count = read32(start_info + START_INFO_MODULE_COUNT);
    for (uint64_t i = 0; i < count; i++, entry += 32)
        put_record("module", "-", read64(entry), read64(entry + 8));
}

/* The address of the XSDT, or 0. */
static uint64_t find_xsdt(uint64_t start_info)
{
    uint64_t rsdp = read64(start_info + START_INFO_RSDP);
    if (rsdp == 0 || !has_bytes(rsdp, "RSD PTR ") || memory_read(rsdp + 15, 1) < 2)
        return 0;
    return read64(rsdp + 24);
}

/* Calls `visit` for each table that the XSDT lists. */
static void for_each_table(uint64_t start_info, void (*visit)(uint64_t table, void *context),
                           void *context)
{
    uint64_t xsdt = find_xsdt(start_info);
    uint64_t end = xsdt ? xsdt + read32(xsdt + 4) : 0;
    for (uint64_t entry = xsdt + 36; entry < end; entry += 8)
        visit(read64(entry), context);
}

static void put_table(uint64_t table)
{
    char signature[5] = {0};
    for (unsigned i = 0; i < 4; i++)
        signature[i] = memory_read(table + i, 1);
    put_record("table", signature, table, read32(table + 4));
}

enum { FADT_RESET_REGISTER = 116, FADT_RESET_VALUE = 128, FADT_X_DSDT = 140, FADT_SLEEP = 244 };

static void print_table(uint64_t table, void *context)
{
    (void)context;
    put_table(table);
    if (has_bytes(table, "FACP"))
        put_table(read64(table + FADT_X_DSDT));
}

void print_acpi(uint64_t start_info)
{
    uint64_t rsdp = read64(start_info + START_INFO_RSDP), xsdt = find_xsdt(start_info);
    if (xsdt == 0) {
        put_text("rsdp: none\n");
        return;
    }
    /* The first 20 bytes have a checksum of their own. */
    put_record("rsdp", "1.0", rsdp, 20);
    put_record("rsdp", "2.0", rsdp, read32(rsdp + 20));
    put_table(xsdt);
    for_each_table(start_info, print_table, NULL);
}

void print_smbios(void)
{
    for (uint64_t entry = 0xf0000; entry < 0x100000; entry += 16) {
        if (!has_bytes(entry, "_SM3_"))
            continue;
        put_record("smbios", "entry", entry, memory_read(entry + 6, 1));
        put_record("smbios", "table", read64(entry + 16), read32(entry + 12));
        return;
    }
    put_text("smbios: none\n");
}

static void keep_if_fadt(uint64_t table, void *fadt)
{
    if (has_bytes(table, "FACP"))
        *(uint64_t *)fadt = table;
}

static uint64_t find_fadt(uint64_t start_info)
{
    uint64_t fadt = 0;
    for_each_table(start_info, keep_if_fadt, &fadt);
    return fadt;
}

/* Writes to a register that a Generic Address Structure describes (ACPI 6.5, section 5.2.3.2), and
 * waits for the end that this brings. Returns only if there is no such register. */
static void end_by(uint64_t gas, uint8_t value)
{
    uint64_t space = memory_read(gas, 1), address = read64(gas + 4);
    if (address == 0 || space > 1)
        return;
    if (space == 1)
        port_write(address, 1, value);
    else
        memory_write(address, 1, value);
    for (;;)
        __asm__ volatile("hlt");
}

/* The first value of the \_S5_ package, or -1. */
static int sleep_type_off(uint64_t dsdt)
{
    uint64_t end = dsdt + read32(dsdt + 4) - 8;
    for (uint64_t name = dsdt + 36; name < end; name++) {
        /* The name, which stands behind a NameOp, and a PackageOp; then come the package's length,
         * in one byte, the number of elements and the first of them. */
        if (!has_bytes(name, "_S5_\x12"))
            continue;
        uint8_t value = memory_read(name + 7, 1);
        const uint8_t byte_prefix = 0x0a;
        return value == byte_prefix ? (int)memory_read(name + 8, 1) : value;
    }
    return -1;
}

void power_off(uint64_t start_info)
{
    uint64_t fadt = find_fadt(start_info);
    int type = fadt ? sleep_type_off(read64(fadt + FADT_X_DSDT)) : -1;
    const uint8_t sleep_enable = 1 << 5;
    if (type >= 0 && read32(fadt + 4) >= FADT_SLEEP + 12)
        end_by(fadt + FADT_SLEEP, type << 2 | sleep_enable);
    put_text("poweroff: no sleep register\n");
}

void reset(uint64_t start_info)
{
    uint64_t fadt = find_fadt(start_info);
    if (fadt)
        end_by(fadt + FADT_RESET_REGISTER, memory_read(fadt + FADT_RESET_VALUE, 1));
    put_text("reset: no reset register\n");
}
