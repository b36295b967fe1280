//! Bytes transcribed from ACPI 6.5 and the SPCR specification, not from the encoders.

use super::super::{EncodeError, PlaceError, RsdpAt};
use super::samples::Sample;
use crate::plan::{GpaRange, Isa, Registers};

/// Bytes written as hexadecimal digits; white space is free.
pub(super) fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// Compares signature, length, revision, checksum and body of a table; the rest of the header says
/// who made it.
#[track_caller]
pub(super) fn assert_table(table: &[u8], signature: &str, revision: u8, body: &str) {
    assert_eq!(&table[..4], signature.as_bytes());
    assert_eq!(table[4..8], (table.len() as u32).to_le_bytes());
    assert_eq!(table[8], revision);
    assert_eq!(sum(table), 0);
    assert_eq!(table[10..16], *b"VIRTMM");
    assert_eq!(table[16..24], *b"VMACHINE");
    assert_eq!(table[36..], hex(body));
}

fn x86(boot: u32, max: u32, topology: [u32; 4]) -> Sample {
    Sample::new(Isa::X86_64, boot, max, topology)
}

fn arm(boot: u32, max: u32, topology: [u32; 4]) -> Sample {
    Sample::new(Isa::Aarch64, boot, max, topology)
}

#[test]
fn rsdp_points_to_the_xsdt() {
    let placed = x86(1, 1, [1; 4]).place();
    let rsdp = &placed.tables[0];
    assert_eq!((rsdp.name.as_str(), rsdp.gpa), ("RSDP", 0xe_0000));
    assert_eq!(placed.rsdp, 0xe_0000);
    // "RSD PTR ", checksum, "VIRTMM", revision 2, no RSDT, length 36, XSDT.
    let mut expected = hex(
        "52 53 44 20 50 54 52 20  00  56 49 52 54 4d 4d  02  00000000  24000000
         00 00 20 40 00 00 00 00  00  000000",
    );
    expected[8] = sum(&expected)
        .wrapping_neg()
        .wrapping_add(0x24 + 0x20 + 0x40);
    expected[32] = sum(&expected).wrapping_neg();
    assert_eq!(rsdp.bytes, expected);
}

#[test]
fn on_aarch64_the_rsdp_is_first_in_the_window() {
    let placed = arm(1, 1, [1; 4]).place();
    assert_eq!(placed.rsdp, 0x4020_0000);
    assert_eq!(placed.tables[0].gpa, 0x4020_0000);
    assert_eq!(placed.tables[0].bytes[24..32], 0x4020_0040u64.to_le_bytes());
}

#[test]
fn xsdt_lists_all_but_itself_and_the_dsdt() {
    let placed = arm(1, 1, [1; 4]).place();
    let names: Vec<_> = placed.tables.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "RSDP", "XSDT", "FACP", "DSDT", "APIC", "GTDT", "PPTT", "SPCR"
        ]
    );
    let listed: Vec<u8> = [2, 4, 5, 6, 7]
        .iter()
        .flat_map(|i| placed.tables[*i].gpa.to_le_bytes())
        .collect();
    assert_eq!(placed.tables[1].bytes[36..], listed);
    assert_eq!(placed.tables[1].bytes[8], 1);
}

/// A FADT body, offset by offset; everything that is not named is 0.
fn fadt(fields: &[(usize, &str)]) -> Vec<u8> {
    let mut fadt = vec![0; 276];
    for (offset, digits) in fields {
        let bytes = hex(digits);
        fadt[*offset..*offset + bytes.len()].copy_from_slice(&bytes);
    }
    fadt
}

#[test]
fn fadt_of_x86() {
    let placed = x86(1, 1, [1; 4]).place();
    let expected = fadt(&[
        (45, "04"),
        // Legacy devices, no VGA; neither 8042 nor the absence of a CMOS RTC.
        (109, "0500"),
        // Bits 0, 2, 4, 5, 6, 10 and 20.
        (112, "75 04 10 00"),
        (116, "01 08 00 01 0206000000000000"),
        (128, "01"),
        (131, "05"),
        (140, &format!("{:016x}", placed.tables[3].gpa.swap_bytes())),
        (244, "01 08 00 01 0006000000000000"),
        (256, "01 08 00 01 0106000000000000"),
        (268, "4b564d0000000000"),
    ]);
    let table = &placed.tables[2].bytes;
    assert_eq!(table[36..], expected[36..]);
    assert_eq!((&table[..4], table[8], sum(table)), (&b"FACP"[..], 6, 0));
    assert_eq!(table[4..8], 276u32.to_le_bytes());
}

#[test]
fn fadt_of_aarch64() {
    let placed = arm(1, 1, [1; 4]).place();
    let expected = fadt(&[
        (45, "04"),
        // Bits 4, 5, 6 and 20.
        (112, "70 00 10 00"),
        // PSCI, by HVC.
        (129, "0300"),
        (131, "05"),
        (140, &format!("{:016x}", placed.tables[3].gpa.swap_bytes())),
        (268, "4b564d0000000000"),
    ]);
    assert_eq!(placed.tables[2].bytes[36..], expected[36..]);
}

#[test]
fn fadt_without_serial_claims_no_legacy_devices() {
    let mut sample = x86(1, 1, [1; 4]);
    sample.devices.serial = None;
    assert_eq!(sample.table("FACP")[109..111], [4, 0]);
}

#[test]
fn madt_of_x86() {
    // Three threads of a core leave a hole: ids 0, 1, 2 and 4.
    let body = "
        0000e0fe 00000000
        00 08 00 00 01000000
        00 08 01 01 01000000
        00 08 02 02 02000000
        00 08 03 04 02000000
        01 0c 00 00 0000c0fe 00000000
        04 06 ff 0000 01";
    assert_table(&x86(2, 4, [3, 2, 1, 1]).table("APIC"), "APIC", 6, body);
}

#[test]
fn madt_of_x86_with_an_id_past_254() {
    let mut sample = x86(3, 3, [1, 3, 1, 1]);
    sample.cpus.cpus[1].hardware_id = 254;
    sample.cpus.cpus[2].hardware_id = 255;
    let body = "
        0000e0fe 00000000
        00 08 00 00 01000000
        00 08 01 fe 01000000
        09 10 0000 ff000000 01000000 02000000
        01 0c 00 00 0000c0fe 00000000
        04 06 ff 0000 01
        0a 0c 0000 ffffffff 01 000000";
    assert_table(&sample.table("APIC"), "APIC", 6, body);
}

#[test]
fn madt_of_aarch64() {
    let mut sample = arm(1, 2, [1, 2, 1, 1]);
    sample.cpus.cpus[1].hardware_id = 0x01_0002_0304;
    let gicc = |index: &str, flags: &str, mpidr: &str| {
        format!(
            "0b 52 0000 {index} {index} {flags} 00000000 00000000 0000000000000000
             0000000000000000 0000000000000000 0000000000000000 19000000 0000000000000000
             {mpidr} 00 00 0000 0000"
        )
    };
    let body = format!(
        "00000000 00000000
         0c 18 0000 00000000 0000000800000000 00000000 03 000000
         {} {}
         0e 10 0000 0000100800000000 00000400
         0f 14 0000 00000000 0000080800000000 00000000",
        gicc("00000000", "01000000", "0000000000000000"),
        gicc("01000000", "00000000", "0403020001000000"),
    );
    assert_table(&sample.table("APIC"), "APIC", 6, &body);
}

#[test]
fn performance_monitors_have_interrupt_23() {
    let mut sample = arm(1, 1, [1; 4]);
    sample.cpus.pmu = true;
    // Header, two MADT fields, GICD, 20 bytes into the GICC.
    assert_eq!(sample.table("APIC")[36 + 8 + 24 + 20..][..4], [23, 0, 0, 0]);
}

#[test]
fn gtdt_of_kvm() {
    let body = "
        ffffffffffffffff 00000000
        1d000000 02000000
        1e000000 06000000
        1b000000 06000000
        1a000000 02000000
        ffffffffffffffff 00000000 00000000
        00000000 00000000";
    assert_table(&arm(1, 1, [1; 4]).table("GTDT"), "GTDT", 3, body);
}

#[test]
fn spcr_of_a_16550() {
    let body = "
        00 000000 01 08 00 01 f803000000000000
        02 00 04000000 00 00 01 00 02 00
        ffff ffff 00 00 00 00000000 00 00000000
        00000000 0b00 5800 5c5f53425f2e5345523000";
    assert_table(&x86(1, 1, [1; 4]).table("SPCR"), "SPCR", 4, body);
}

#[test]
fn spcr_of_a_pl011() {
    let body = "
        03 000000 00 20 00 03 0000000900000000
        08 00 21000000 00 00 01 00 02 00
        ffff ffff 00 00 00 00000000 00 00000000
        00000000 0b00 5800 5c5f53425f2e5345523000";
    assert_table(&arm(1, 1, [1; 4]).table("SPCR"), "SPCR", 4, body);
}

#[test]
fn no_spcr_without_a_serial_port() {
    let mut sample = arm(1, 1, [1; 4]);
    sample.devices.serial = None;
    assert!(sample.place().tables.iter().all(|t| t.name != "SPCR"));
}

#[test]
fn pptt_of_cores_in_two_packages() {
    // Root at 36, package 0 at 56, its core at 76, package 1 at 96, its core at 116.
    let body = "
        00 14 0000 10000000 00000000 00000000 00000000
        00 14 0000 13000000 24000000 00000000 00000000
        00 14 0000 0a000000 38000000 00000000 00000000
        00 14 0000 13000000 24000000 01000000 00000000
        00 14 0000 0a000000 60000000 01000000 00000000";
    assert_table(&arm(2, 2, [1, 1, 1, 2]).table("PPTT"), "PPTT", 2, body);
}

#[test]
fn pptt_of_threads_in_two_dies() {
    // Root 36, package 56, die 76, core 96, its threads 116 and 136, die 156, core 176, threads.
    let body = "
        00 14 0000 10000000 00000000 00000000 00000000
        00 14 0000 13000000 24000000 00000000 00000000
        00 14 0000 10000000 38000000 00000000 00000000
        00 14 0000 10000000 4c000000 00000000 00000000
        00 14 0000 0e000000 60000000 00000000 00000000
        00 14 0000 0e000000 60000000 01000000 00000000
        00 14 0000 10000000 38000000 00000000 00000000
        00 14 0000 10000000 9c000000 00000000 00000000
        00 14 0000 0e000000 b0000000 02000000 00000000
        00 14 0000 0e000000 b0000000 03000000 00000000";
    assert_table(&arm(4, 4, [2, 1, 2, 1]).table("PPTT"), "PPTT", 2, body);
}

#[test]
fn values_that_do_not_fit_their_field_are_refused() {
    let refuse = |change: fn(&mut Sample)| {
        let mut sample = x86(2, 2, [1, 2, 1, 1]);
        change(&mut sample);
        sample.try_encode().err().expect("cannot be described")
    };
    assert_eq!(
        refuse(|s| s.cpus.cpus[1].hardware_id = 1 << 32),
        EncodeError::ApicId {
            cpu: 1,
            id: 1 << 32
        }
    );
    assert_eq!(
        refuse(|s| s.cpus.cpus[1].index = 255),
        EncodeError::ProcessorUid { cpu: 255, id: 1 }
    );
    assert_eq!(
        refuse(|s| s.cpus.cpus[1].package = 3072),
        EncodeError::NoName { number: 3072 }
    );
    assert_eq!(
        refuse(|s| s.devices.rtc = Registers::Pio {
            base: 0x70,
            size: 256
        }),
        EncodeError::Ports {
            base: 0x70,
            size: 256
        }
    );
    assert_eq!(
        refuse(|s| s.devices.sleep = Some(crate::plan::SleepPlan { base: 0xfffe })),
        EncodeError::SleepRegisters { base: 0xfffe }
    );
    assert_eq!(
        refuse(|s| s.isa = Isa::Aarch64),
        EncodeError::ForeignInterrupts { isa: Isa::Aarch64 }
    );
}

#[test]
fn windows_that_do_not_fit_are_refused() {
    let sample = arm(1, 1, [1; 4]);
    let needed = sample.encode().size(RsdpAt::WindowStart);
    let place = |start, size| {
        let window = GpaRange { start, size };
        sample.encode().place(window, RsdpAt::WindowStart).err()
    };
    assert_eq!(place(0x1000, needed), None);
    assert_eq!(
        place(0x1000, needed - 1),
        Some(PlaceError::WindowTooSmall {
            needed,
            window: GpaRange {
                start: 0x1000,
                size: needed - 1
            }
        })
    );
    assert_eq!(
        place(0x1020, needed),
        Some(PlaceError::Unaligned { address: 0x1020 })
    );
    let window = GpaRange {
        start: u64::MAX - 63,
        size: needed,
    };
    assert_eq!(
        place(window.start, window.size),
        Some(PlaceError::NoEnd { window })
    );
}
