//! Guest-physical memory map.
//!
//! Everything below 1 GiB belongs to devices; RAM is one contiguous range from 1 GiB upwards. Every
//! device has 64 KiB or more to itself, because a guest with 64 KiB pages maps no less.
//!
//! RAM begins with what the guest is handed at start:
//!
//! | from | what |
//! |---|---|
//! | [`FDT`] | device tree, 2 MiB |
//! | [`ACPI_START`] | [`AcpiWindow`]: ACPI tables, SMBIOS, EFI structures; absent without ACPI |
//! | end of the above | [`boot_area`]: kernel, then initramfs |

use crate::GpaRange;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Registers of the GIC distributor.
pub const GIC_DISTRIBUTOR: GpaRange = GpaRange::new(0x0800_0000, 64 * KIB);
/// Registers of the GIC interrupt translation service, the translation page included.
pub const GIC_ITS: GpaRange = GpaRange::new(0x0804_0000, 128 * KIB);
/// Registers of the PL011 serial port.
pub const SERIAL: GpaRange = GpaRange::new(0x0900_0000, 4 * KIB);
/// Registers of the PL031 real-time clock.
pub const RTC: GpaRange = GpaRange::new(0x0901_0000, 4 * KIB);
/// Event register of the ACPI Generic Event Device.
pub const EVENTS: GpaRange = GpaRange::new(0x0902_0000, 1);

/// First redistributor of the GIC.
pub const GIC_REDISTRIBUTORS_START: u64 = 0x0A00_0000;
/// Bytes of one CPU's redistributor: an RD and an SGI frame (Arm IHI 0069, section 12.10).
pub const GIC_REDISTRIBUTOR_SIZE: u64 = 128 * KIB;
/// CPUs whose redistributors fit.
pub const MAX_CPUS: u32 = 256;

/// Where 32-bit PCI BARs go.
pub const PCI_MMIO32: GpaRange = GpaRange::new(0x1000_0000, 512 * MIB);
/// Configuration space of all PCI segments: [`PCI_ECAM_SIZE`] for each.
pub const PCI_ECAM: GpaRange = GpaRange::new(0x3000_0000, PCI_ECAM_SIZE * MAX_PCI_SEGMENTS as u64);
/// Configuration space of one PCI segment, which has one bus, in bytes.
pub const PCI_ECAM_SIZE: u64 = MIB;
/// PCI segments whose configuration space fits.
pub const MAX_PCI_SEGMENTS: u16 = 96;

/// First address of RAM.
pub const RAM_START: u64 = 0x4000_0000;
/// The device tree: the most that Linux takes (Documentation/arch/arm64/booting.rst, section 2).
pub const FDT: GpaRange = GpaRange::new(RAM_START, 2 * MIB);
/// First address of the [`AcpiWindow`], and of its RSDP.
pub const ACPI_START: u64 = FDT.end();

/// INTID of the performance monitors (this and the next five: Arm BSA, DEN0094, "PPI assignments").
pub const INTID_PMU: u32 = 23;
/// INTID of the GIC's maintenance interrupt.
pub const INTID_MAINTENANCE: u32 = 25;
/// INTID of the EL2 physical timer.
pub const INTID_TIMER_HYPERVISOR: u32 = 26;
/// INTID of the EL1 virtual timer.
pub const INTID_TIMER_VIRTUAL: u32 = 27;
/// INTID of the secure EL1 physical timer.
pub const INTID_TIMER_SECURE: u32 = 29;
/// INTID of the non-secure EL1 physical timer.
pub const INTID_TIMER_PHYSICAL: u32 = 30;
/// INTID of the serial port.
pub const INTID_SERIAL: u32 = 33;
/// INTID of the real-time clock.
pub const INTID_RTC: u32 = 34;
/// INTID of the Generic Event Device.
pub const INTID_EVENTS: u32 = 35;
/// First INTID for PCI INTx, and how many there are.
pub const INTID_PCI_INTX: u32 = 40;
/// See [`INTID_PCI_INTX`].
pub const PCI_INTX_LINES: u32 = 8;

/// Redistributors of this many CPUs; at most [`MAX_CPUS`] fit before the next device.
pub const fn gic_redistributors(cpus: u32) -> GpaRange {
    GpaRange::new(
        GIC_REDISTRIBUTORS_START,
        cpus as u64 * GIC_REDISTRIBUTOR_SIZE,
    )
}

/// The part of RAM, from [`ACPI_START`], that holds everything firmware would have left behind; the
/// guest is told that it is ACPI-reclaimable.
///
/// Its last 64 KiB are for the EFI structures, the 64 KiB before them for SMBIOS, the rest for ACPI
/// tables with the RSDP first. Its size is a multiple of 2 MiB, so the kernel can follow directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiWindow {
    size: u64,
}

impl AcpiWindow {
    /// Step of the window's size, in bytes.
    pub const STEP: u64 = 2 * MIB;
    /// Bytes for the EFI structures.
    pub const EFI_SIZE: u64 = 64 * KIB;
    /// Bytes for the SMBIOS entry point and structure table.
    pub const SMBIOS_SIZE: u64 = 64 * KIB;

    /// The smallest window that takes ACPI tables of this many bytes.
    pub const fn holding(tables: u64) -> Self {
        let steps = tables
            .saturating_add(Self::SMBIOS_SIZE + Self::EFI_SIZE)
            .div_ceil(Self::STEP);
        Self {
            size: steps.saturating_mul(Self::STEP),
        }
    }

    /// The window with these bounds; `None` if it cannot be one.
    pub const fn from_range(range: GpaRange) -> Option<Self> {
        let fits = range.size > 0 && range.size.is_multiple_of(Self::STEP);
        if range.start == ACPI_START && fits {
            Some(Self { size: range.size })
        } else {
            None
        }
    }

    /// The whole window.
    pub const fn range(&self) -> GpaRange {
        GpaRange::new(ACPI_START, self.size)
    }

    /// Where the ACPI tables go.
    pub const fn tables(&self) -> GpaRange {
        let size = self.size - Self::SMBIOS_SIZE - Self::EFI_SIZE;
        GpaRange::new(ACPI_START, size)
    }

    /// Where the SMBIOS entry point and structure table go.
    pub const fn smbios(&self) -> GpaRange {
        GpaRange::new(self.tables().end(), Self::SMBIOS_SIZE)
    }

    /// Where the EFI structures go.
    pub const fn efi(&self) -> GpaRange {
        GpaRange::new(self.smbios().end(), Self::EFI_SIZE)
    }
}

/// What is left for kernel and initramfs of `ram_size` bytes of RAM; of size 0 if nothing is.
pub const fn boot_area(ram_size: u64, window: Option<AcpiWindow>) -> GpaRange {
    let start = match window {
        Some(window) => window.range().end(),
        None => FDT.end(),
    };
    let end = RAM_START.saturating_add(ram_size);
    GpaRange::new(start, end.saturating_sub(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_disjoint_ascending_and_below_ram() {
        let devices = [
            GIC_DISTRIBUTOR,
            GIC_ITS,
            SERIAL,
            RTC,
            EVENTS,
            gic_redistributors(MAX_CPUS),
            PCI_MMIO32,
            PCI_ECAM,
            GpaRange::new(RAM_START, 1),
        ];
        for pair in devices.windows(2) {
            assert!(pair[0].end() <= pair[1].start, "{pair:x?}");
            assert_eq!(pair[0].start % (64 * KIB), 0, "{pair:x?}");
            // No two of them in one page of a 64 KiB-page guest.
            assert!(pair[0].end().next_multiple_of(64 * KIB) <= pair[1].start);
        }
    }

    #[test]
    fn windows_end_where_the_map_says() {
        assert_eq!(gic_redistributors(MAX_CPUS).end(), 0x0C00_0000);
        assert_eq!(PCI_MMIO32.end(), 0x3000_0000);
        assert_eq!(PCI_ECAM.end(), 0x3600_0000);
        assert_eq!(ACPI_START, 0x4020_0000);
    }

    #[test]
    fn acpi_window_grows_in_steps_of_two_mebibytes() {
        assert_eq!(AcpiWindow::holding(0).range().size, 2 * MIB);
        let room = 2 * MIB - 128 * KIB;
        assert_eq!(AcpiWindow::holding(room).range().size, 2 * MIB);
        assert_eq!(AcpiWindow::holding(room + 1).range().size, 4 * MIB);
        assert_eq!(AcpiWindow::holding(room).tables().size, room);
    }

    #[test]
    fn acpi_window_is_cut_without_gaps() {
        let window = AcpiWindow::holding(100);
        assert_eq!(window.tables(), GpaRange::new(0x4020_0000, 0x1E_0000));
        assert_eq!(window.smbios(), GpaRange::new(0x403E_0000, 0x1_0000));
        assert_eq!(window.efi(), GpaRange::new(0x403F_0000, 0x1_0000));
        assert_eq!(window.efi().end(), window.range().end());
    }

    #[test]
    fn acpi_window_is_only_taken_from_a_range_that_can_be_one() {
        let range = AcpiWindow::holding(5 * MIB).range();
        assert_eq!(
            AcpiWindow::from_range(range),
            Some(AcpiWindow::holding(5 * MIB))
        );
        for (start, size) in [(ACPI_START, 0), (ACPI_START, 3 * MIB), (RAM_START, 2 * MIB)] {
            assert_eq!(AcpiWindow::from_range(GpaRange::new(start, size)), None);
        }
    }

    #[test]
    fn boot_area_is_what_remains_of_ram() {
        let window = AcpiWindow::holding(100);
        let area = boot_area(512 * MIB, Some(window));
        assert_eq!(area, GpaRange::new(0x4040_0000, 508 * MIB));
        assert_eq!(
            boot_area(512 * MIB, None),
            GpaRange::new(0x4020_0000, 510 * MIB)
        );
        assert_eq!(boot_area(3 * MIB, Some(window)).size, 0);
    }
}
