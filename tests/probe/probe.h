/* What the parts of the probe share. */
#ifndef PROBE_H
#define PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* machine.c: the hardware. */

/* Reads or writes one I/O port; `width` is 1, 2 or 4 bytes. */
uint32_t port_read(uint16_t port, unsigned width);
void port_write(uint16_t port, unsigned width, uint32_t value);
/* Reads or writes one port `count` times with a single string instruction, through a buffer of
 * STRING_BUFFER bytes. */
enum { STRING_BUFFER = 4096 };
void port_read_string(uint16_t port, unsigned width, uint32_t count, void *buffer);
void port_write_string(uint16_t port, unsigned width, uint32_t count, const void *buffer);

/* Reads or writes guest-physical memory, anywhere; `width` is 1, 2, 4 or 8 bytes. */
uint64_t memory_read(uint64_t address, unsigned width);
void memory_write(uint64_t address, unsigned width, uint64_t value);

/* Prints to the serial port. */
void put_char(char c);
void put_text(const char *text);
void put_hex(uint64_t value);
void put_dump(uint64_t address, uint64_t size);

/* Reads one byte from the serial port, and waits for it. */
char get_char(void);

/* Ends the machine by a triple fault. */
_Noreturn void triple_fault(void);

/* firmware.c: what the guest is told. Each prints its findings. */

void print_memory_map(uint64_t start_info);
void print_modules(uint64_t start_info);
void print_acpi(uint64_t start_info);
void print_smbios(void);
void power_off(uint64_t start_info);
void reset(uint64_t start_info);

/* cpus.c: other CPUs, and NMIs. CPU n counts at COUNTERS + 64 * n, and its NMIs at NMI_COUNTERS + 64 * n;
 * n is its local APIC's id, below 64. */

enum { COUNTERS = 0x9000, NMI_COUNTERS = 0xa000 };

/* Starts all other CPUs: they count for ever, or once and halt. */
void start_cpus(bool halt);
/* Counts NMIs from now on, on all CPUs, and then this call as one of this CPU. */
void count_nmis(void);
/* Counts for ever. */
_Noreturn void count(void);

/* Offsets in PVH's hvm_start_info. */
enum {
    START_INFO_MAGIC = 0,
    START_INFO_VERSION = 4,
    START_INFO_MODULE_COUNT = 12,
    START_INFO_MODULES = 16,
    START_INFO_CMDLINE = 24,
    START_INFO_RSDP = 32,
    START_INFO_MEMORY_MAP = 40,
    START_INFO_MEMORY_MAP_COUNT = 48,
};
#define START_INFO_MAGIC_VALUE 0x336ec578

#endif
