/* What CPUs run that are started by the others: copied to CPU_CODE, in real mode, and never any further.
 * BX is 64 times the id of the local APIC. */

#define COUNTERS 0x9000
#define NMI_COUNTERS 0xa000
#define STACKS 0xb040

    .section .rodata
    .globl cpu_code, cpu_code_halt, cpu_code_nmi, cpu_code_end
    .code16
cpu_code:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movl $1, %eax
    cpuid
    shrl $24, %ebx
    shll $6, %ebx
    leal STACKS(%ebx), %esp
1:  incl COUNTERS(%bx)
cpu_code_halt:
    jmp 1b
    hlt
    jmp cpu_code_halt + 2
cpu_code_nmi:
    incl NMI_COUNTERS(%bx)
    iretw
cpu_code_end:

/* The same for the first CPU, whose id is 0. */
    .text
    .code64
    .globl first_cpu_nmi
first_cpu_nmi:
    incl NMI_COUNTERS
    iretq

    .section .note.GNU-stack, "", @progbits
