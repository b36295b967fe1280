/* Entry of the probe: from the PVH state (32-bit protected mode without paging, EBX pointing to the
 * start info) to 64-bit C code with the first GiB mapped. */

#define SERIAL_PORT 0x3f8
#define XEN_ELFNOTE_PHYS32_ENTRY 18

#define PAGE_PRESENT_WRITABLE 0x03
#define PAGE_LARGE 0x80
#define CR0_PG_PE 0x80000001
#define CR4_PAE 0x20
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100

    .section .note.Xen, "a", @note
    .align 4
    .long 4, 8, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad start

    .section .entry, "ax"
    .code32
    .globl start
start:
    cli
    cld
    /* Says that it is alive before anything else: start-up time is measured by this line. */
    movl $hello, %esi
    movl $(hello_end - hello), %ecx
    movw $SERIAL_PORT, %dx
1:  lodsb
    outb %al, %dx
    loop 1b

    /* After a reset without a fresh load of the image, this is not zero. */
    movl $bss_start, %edi
    movl $bss_dwords, %ecx
    xorl %eax, %eax
    rep stosl

    movl $(pdpt + PAGE_PRESENT_WRITABLE), pml4
    movl $(first_directory + PAGE_PRESENT_WRITABLE), pdpt
    movl $first_directory, %edi
    movl $(PAGE_PRESENT_WRITABLE + PAGE_LARGE), %eax
    movl $512, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b

    movl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl $CR0_PG_PE, %eax
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $start64

    .code64
start64:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $stack_end, %esp
    movl %ebx, %edi
    call probe_main
3:  hlt
    jmp 3b

    .section .rodata
hello:
    .ascii "probe: up\n"
hello_end:
    .align 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff /* 64-bit code */
    .quad 0x00cf93000000ffff /* data */
gdt_pointer:
    .word . - gdt - 1
    .long gdt

    .section .bss
    .align 4096
    .globl pml4, pdpt
pml4:
    .skip 4096
pdpt:
    .skip 4096
first_directory:
    .skip 4096
    .skip 16384
stack_end:

    .section .note.GNU-stack, "", @progbits
