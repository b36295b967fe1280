//! The guest-physical address space, I/O ports and interrupt numbers of an x86_64 guest.
//!
//! ```text
//! 0x0000_0000_0000  low RAM, with boot structures, ACPI's RSDP and SMBIOS below 1 MiB
//! 0x0000_c000_0000  32-bit PCI window (at most 3 GiB of RAM lies below it)
//! 0x0000_e800_0000  ECAM, one MiB for each of up to 96 PCI segments
//! 0x0000_fec0_0000  I/O APIC
//! 0x0000_fee0_0000  local APICs
//! 0x0000_fffb_c000  pages that KVM takes on Intel hosts
//! 0x0001_0000_0000  RAM beyond 3 GiB, then 64-bit PCI windows
//! ```
//!
//! Every `*_START` and `*_BASE` is a guest-physical address, every `*_END` the first address past
//! the range, every `*_SIZE` a number of bytes.

// ---- Below 1 MiB -------------------------------------------------------------------------------

/// Global descriptor table for the boot vCPU ([`super::boot::gdt`]).
pub const GDT_START: u64 = 0x1000;

/// `boot_params` of the Linux boot protocol, the "zero page"; 4 KiB.
pub const ZERO_PAGE_START: u64 = 0x2000;

/// PVH `hvm_start_info`.
pub const PVH_START_INFO_START: u64 = 0x3000;

/// PVH list of modules: one entry, for the initramfs.
pub const PVH_MODULES_START: u64 = 0x3100;

/// PVH memory map.
pub const PVH_MEMORY_MAP_START: u64 = 0x4000;
/// Room for the PVH memory map.
pub const PVH_MEMORY_MAP_SIZE: u64 = 0x4000;

/// Kernel command line.
pub const CMDLINE_START: u64 = 0x1_0000;
/// Room for the command line, its terminating NUL included.
pub const CMDLINE_SIZE: u64 = 0x1_0000;

/// Extended BIOS data area: end of conventional memory, reserved in the memory map.
pub const EBDA_START: u64 = 0x9_fc00;

/// ACPI root pointer (RSDP). In the BIOS area, where a kernel that was not told its address scans
/// for it (ACPI 6.5, section 5.2.5.1).
pub const RSDP_START: u64 = 0xe_0000;

/// SMBIOS 3 entry point, `_SM3_`: an address that kernels scan, a multiple of 16 from 0xf0000
/// (SMBIOS 3.7, section 5.2.2).
pub const SMBIOS_ENTRY_START: u64 = 0xf_0000;
/// SMBIOS structure table, behind the 24-byte entry point.
pub const SMBIOS_TABLE_START: u64 = 0xf_0020;
/// End of the room for the SMBIOS structure table.
pub const SMBIOS_TABLE_END: u64 = RESET_VECTOR;

/// The processor's entry point after a reset, as real mode sees it: F000:FFF0
/// ([`super::boot::reset_vector`]).
pub const RESET_VECTOR: u64 = 0xf_fff0;

/// First address past the BIOS area; kernels are loaded from here up.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

// ---- RAM and MMIO ------------------------------------------------------------------------------

/// End of low RAM at most; the rest of RAM goes to [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = MMIO32_START;

/// 32-bit PCI window.
pub const MMIO32_START: u64 = 0xc000_0000;
/// End of the 32-bit PCI window.
pub const MMIO32_END: u64 = ECAM_START;

/// PCI configuration space (ECAM) of segment 0; the others follow at [`ECAM_SEGMENT_SIZE`].
pub const ECAM_START: u64 = 0xe800_0000;
/// Configuration space of a segment with one bus: 32 devices of 8 functions of 4 KiB.
pub const ECAM_SEGMENT_SIZE: u64 = 0x10_0000;
/// Most PCI segments.
pub const ECAM_MAX_SEGMENTS: u64 = 96;
/// End of the configuration space of all segments.
pub const ECAM_END: u64 = ECAM_START + ECAM_MAX_SEGMENTS * ECAM_SEGMENT_SIZE;

/// Register page of the I/O APIC.
pub const IO_APIC_BASE: u64 = 0xfec0_0000;
/// Size of the I/O APIC's register page.
pub const IO_APIC_SIZE: u64 = 0x1000;
/// Interrupt inputs of the I/O APIC; its GSIs are 0 up to but not including this.
pub const IO_APIC_PINS: u32 = 24;

/// Registers of the local APICs, and target of message-signalled interrupts.
pub const LOCAL_APIC_BASE: u64 = 0xfee0_0000;
/// Size of the local APICs' range.
pub const LOCAL_APIC_SIZE: u64 = 0x10_0000;

/// Page that KVM fills with an identity-mapping page table on Intel hosts
/// (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP_START: u64 = 0xfffb_c000;
/// Pages that KVM uses as a task state segment on Intel hosts (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS_START: u64 = 0xfffb_d000;
/// Three pages.
pub const KVM_TSS_SIZE: u64 = 0x3000;

/// RAM that does not fit below [`LOW_RAM_END`] continues here.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

// ---- I/O ports ---------------------------------------------------------------------------------

/// Command and data ports of the i8042 keyboard controller are 0x64 and 0x60; writing 0xfe to the
/// former resets the machine.
pub const I8042_DATA_PORT: u16 = 0x60;
/// See [`I8042_DATA_PORT`].
pub const I8042_COMMAND_PORT: u16 = 0x64;

/// NMI status and control: where a guest looks up the reason for an NMI.
pub const NMI_STATUS_PORT: u16 = 0x61;

/// Index port of the CMOS real-time clock; data is the next one.
pub const CMOS_PORT: u16 = 0x70;
/// Number of ports of the CMOS clock.
pub const CMOS_PORTS: u16 = 2;

/// Debug console: each byte written is printed.
pub const DEBUG_CONSOLE_PORT: u16 = 0xe9;

/// First serial port (COM1).
pub const SERIAL_PORT: u16 = 0x3f8;
/// Number of ports of a 16550.
pub const SERIAL_PORTS: u16 = 8;

/// ACPI sleep control, sleep status and reset registers, one byte each, in this order.
pub const SLEEP_PORT: u16 = 0x600;
/// Number of ACPI sleep ports.
pub const SLEEP_PORTS: u16 = 3;

/// Event register of the ACPI Generic Event Device, one byte.
pub const GED_PORT: u16 = 0x608;

/// I/O ports of PCI BARs, far from where fixed devices are.
pub const PCI_PORTS_START: u16 = 0xc000;
/// Number of I/O ports of PCI BARs: all up to the last.
pub const PCI_PORTS_SIZE: u16 = 0x4000;

// ---- Interrupts --------------------------------------------------------------------------------

/// Interrupt of the serial port: what COM1 has had since the PC, edge-triggered.
pub const SERIAL_GSI: u32 = 4;

/// Interrupt of the Generic Event Device, edge-triggered and active high.
///
/// Below 16, because those are the inputs that are edge-triggered and active high unless said
/// otherwise, and the rest is kept for PCI INTx, which is level-triggered. 10, because kernels
/// expect nothing of their own there: 8 is the clock, 9 the SCI, 12 the mouse, 13 the FPU.
pub const GED_GSI: u32 = 10;

/// First interrupt for PCI INTx, level-triggered; the last is [`IO_APIC_PINS`] - 1.
pub const PCI_INTX_GSI: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every range of the map, in the order of the addresses.
    const RANGES: &[(&str, u64, u64)] = &[
        ("GDT", GDT_START, GDT_START + 0x1000),
        ("zero page", ZERO_PAGE_START, ZERO_PAGE_START + 0x1000),
        (
            "start info",
            PVH_START_INFO_START,
            PVH_START_INFO_START + 56,
        ),
        ("modules", PVH_MODULES_START, PVH_MODULES_START + 32),
        (
            "memory map",
            PVH_MEMORY_MAP_START,
            PVH_MEMORY_MAP_START + PVH_MEMORY_MAP_SIZE,
        ),
        ("command line", CMDLINE_START, CMDLINE_START + CMDLINE_SIZE),
        ("EBDA", EBDA_START, 0xa_0000),
        ("RSDP", RSDP_START, RSDP_START + 36),
        ("SMBIOS entry", SMBIOS_ENTRY_START, SMBIOS_ENTRY_START + 24),
        ("SMBIOS table", SMBIOS_TABLE_START, SMBIOS_TABLE_END),
        ("RAM above 1 MiB", HIGH_MEMORY_START, LOW_RAM_END),
        ("32-bit window", MMIO32_START, MMIO32_END),
        ("ECAM", ECAM_START, ECAM_END),
        ("I/O APIC", IO_APIC_BASE, IO_APIC_BASE + IO_APIC_SIZE),
        (
            "local APIC",
            LOCAL_APIC_BASE,
            LOCAL_APIC_BASE + LOCAL_APIC_SIZE,
        ),
        (
            "identity map",
            KVM_IDENTITY_MAP_START,
            KVM_IDENTITY_MAP_START + 0x1000,
        ),
        ("TSS", KVM_TSS_START, KVM_TSS_START + KVM_TSS_SIZE),
        ("high RAM", HIGH_RAM_START, u64::MAX),
    ];

    #[test]
    fn ranges_ascend_without_overlap() {
        for pair in RANGES.windows(2) {
            let ((below, _, end), (above, start, _)) = (pair[0], pair[1]);
            assert!(
                end <= start,
                "{below} ends at {end:#x}, {above} starts at {start:#x}"
            );
        }
        for (name, start, end) in RANGES {
            assert!(start < end, "{name} is empty");
        }
    }

    #[test]
    fn ports_do_not_overlap() {
        let ports = [
            (I8042_DATA_PORT, 1),
            (NMI_STATUS_PORT, 1),
            (I8042_COMMAND_PORT, 1),
            (CMOS_PORT, CMOS_PORTS),
            (DEBUG_CONSOLE_PORT, 1),
            (SERIAL_PORT, SERIAL_PORTS),
            (SLEEP_PORT, SLEEP_PORTS),
            (GED_PORT, 1),
        ];
        for pair in ports.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }
}
