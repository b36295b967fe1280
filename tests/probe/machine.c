/* The hardware: ports, memory, the serial port. */

#include "probe.h"

enum { SERIAL_PORT = 0x3f8, SERIAL_LINE_STATUS = SERIAL_PORT + 5 };
enum { LINE_STATUS_DATA_READY = 1 };

uint32_t port_read(uint16_t port, unsigned width)
{
    uint32_t value = 0;
    switch (width) {
    case 1: {
        uint8_t byte;
        __asm__ volatile("inb %1, %0" : "=a"(byte) : "d"(port));
        return byte;
    }
    case 2: {
        uint16_t word;
        __asm__ volatile("inw %1, %0" : "=a"(word) : "d"(port));
        return word;
    }
    default:
        __asm__ volatile("inl %1, %0" : "=a"(value) : "d"(port));
        return value;
    }
}

void port_write(uint16_t port, unsigned width, uint32_t value)
{
    switch (width) {
    case 1:
        __asm__ volatile("outb %0, %1" : : "a"((uint8_t)value), "d"(port));
        break;
    case 2:
        __asm__ volatile("outw %0, %1" : : "a"((uint16_t)value), "d"(port));
        break;
    default:
        __asm__ volatile("outl %0, %1" : : "a"(value), "d"(port));
    }
}

void port_read_string(uint16_t port, unsigned width, uint32_t count, void *buffer)
{
    uint64_t times = count;
    switch (width) {
    case 1:
        __asm__ volatile("rep insb" : "+D"(buffer), "+c"(times) : "d"(port) : "memory");
        break;
    case 2:
        __asm__ volatile("rep insw" : "+D"(buffer), "+c"(times) : "d"(port) : "memory");
        break;
    default:
        __asm__ volatile("rep insl" : "+D"(buffer), "+c"(times) : "d"(port) : "memory");
    }
}

void port_write_string(uint16_t port, unsigned width, uint32_t count, const void *buffer)
{
    uint64_t times = count;
    switch (width) {
    case 1:
        __asm__ volatile("rep outsb" : "+S"(buffer), "+c"(times) : "d"(port) : "memory");
        break;
    case 2:
        __asm__ volatile("rep outsw" : "+S"(buffer), "+c"(times) : "d"(port) : "memory");
        break;
    default:
        __asm__ volatile("rep outsl" : "+S"(buffer), "+c"(times) : "d"(port) : "memory");
    }
}

/* Where paging, set up in entry.S, can be extended. */
extern uint64_t pml4[512], pdpt[512];

/* One page of large-page entries, and where such a page has to hang. */
static uint64_t spare_pdpt[512] __attribute__((aligned(4096)));
static uint64_t spare_directory[512] __attribute__((aligned(4096)));

/* Makes the 1 GiB around `address` accessible, where virtual addresses are physical ones. The first
 * GiB always is; of the others, one at a time. */
static void map(uint64_t address)
{
    static uint64_t mapped, *mapped_by, *upper_mapped_by;
    const uint64_t present_writable = 3, large = 0x80;
    uint64_t gib = address >> 30;

    if (gib == 0 || gib == mapped)
        return;
    mapped = gib;
    if (mapped_by)
        *mapped_by = 0;
    if (upper_mapped_by)
        *upper_mapped_by = 0;
    upper_mapped_by = NULL;
    uint64_t *table = pdpt;
    if (gib >= 512) {
        table = spare_pdpt;
        upper_mapped_by = &pml4[gib >> 9 & 511];
        *upper_mapped_by = (uint64_t)spare_pdpt | present_writable;
    }
    for (unsigned i = 0; i < 512; i++)
        spare_directory[i] = gib << 30 | (uint64_t)i << 21 | present_writable | large;
    mapped_by = &table[gib & 511];
    *mapped_by = (uint64_t)spare_directory | present_writable;
    __asm__ volatile("mov %0, %%cr3" : : "r"(pml4) : "memory");
}

uint64_t memory_read(uint64_t address, unsigned width)
{
    map(address);
    switch (width) {
    case 1:
        return *(volatile uint8_t *)address;
    case 2:
        return *(volatile uint16_t *)address;
    case 4:
        return *(volatile uint32_t *)address;
    default:
        return *(volatile uint64_t *)address;
    }
}

void memory_write(uint64_t address, unsigned width, uint64_t value)
{
    map(address);
    switch (width) {
    case 1:
        *(volatile uint8_t *)address = value;
        break;
    case 2:
        *(volatile uint16_t *)address = value;
        break;
    case 4:
        *(volatile uint32_t *)address = value;
        break;
    default:
        *(volatile uint64_t *)address = value;
    }
}

void put_char(char c)
{
    port_write(SERIAL_PORT, 1, c);
}

void put_text(const char *text)
{
    while (*text)
        put_char(*text++);
}

static void put_digit(unsigned digit)
{
    put_char("0123456789abcdef"[digit & 15]);
}

void put_hex(uint64_t value)
{
    int shift = 60;
    while (shift > 0 && value >> shift == 0)
        shift -= 4;
    put_text("0x");
    for (; shift >= 0; shift -= 4)
        put_digit(value >> shift);
}

void put_dump(uint64_t address, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++) {
        uint64_t byte = memory_read(address + i, 1);
        put_digit(byte >> 4);
        put_digit(byte);
    }
}

char get_char(void)
{
    while (!(port_read(SERIAL_LINE_STATUS, 1) & LINE_STATUS_DATA_READY))
        __asm__ volatile("pause");
    return port_read(SERIAL_PORT, 1);
}

_Noreturn void triple_fault(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) empty = {0, 0};
    __asm__ volatile("lidt %0; ud2" : : "m"(empty));
    __builtin_unreachable();
}
