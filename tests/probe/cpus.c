/* Other CPUs, and NMIs. */

#include "probe.h"

enum { CPU_CODE = 0x8000, AREA_END = 0xd000 };
enum { NMI_VECTOR = 2 };

extern const uint8_t cpu_code[], cpu_code_halt[], cpu_code_nmi[], cpu_code_end[];
extern const uint8_t first_cpu_nmi[];

/* Clears the counters and puts the code for other CPUs in place. */
static void prepare(void)
{
    static bool done;
    if (done)
        return;
    done = true;
    for (uint64_t address = CPU_CODE; address < AREA_END; address += 8)
        memory_write(address, 8, 0);
    for (const uint8_t *byte = cpu_code; byte < cpu_code_end; byte++)
        memory_write(CPU_CODE + (byte - cpu_code), 1, *byte);
}

void start_cpus(bool halt)
{
    /* The interrupt command register (Intel SDM, volume 3, "Interrupt Command Register"): to all but
     * this one, level asserted, INIT and then start-up with the page of the code. */
    const uint64_t command = 0xfee00300, init = 0xc4500, start_up = 0xc4600 | CPU_CODE >> 12;
    const uint8_t nop = 0x90;
    prepare();
    if (halt)
        for (unsigned i = 0; i < 2; i++)
            memory_write(CPU_CODE + (cpu_code_halt - cpu_code) + i, 1, nop);
    memory_write(command, 4, init);
    memory_write(command, 4, start_up);
}

void count_nmis(void)
{
    static struct {
        uint16_t offset_low, selector, type, offset_middle;
        uint32_t offset_high, reserved;
    } gates[NMI_VECTOR + 1];
    const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) idt = {sizeof(gates) - 1, (uint64_t)gates};
    uint64_t handler = (uint64_t)first_cpu_nmi;

    prepare();
    /* Of the CPUs in real mode: offset and segment. */
    memory_write(4 * NMI_VECTOR, 4, CPU_CODE + (cpu_code_nmi - cpu_code));
    gates[NMI_VECTOR].offset_low = handler;
    gates[NMI_VECTOR].selector = 8;
    gates[NMI_VECTOR].type = 0x8e00;
    gates[NMI_VECTOR].offset_middle = handler >> 16;
    __asm__ volatile("lidt %0" : : "m"(idt));
    memory_write(COUNTERS, 4, 1);
}

_Noreturn void count(void)
{
    prepare();
    for (;;)
        ++*(volatile uint32_t *)COUNTERS;
}
