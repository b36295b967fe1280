//! Serial Port Console Redirection table (Microsoft, "Serial Port Console Redirection Table").

use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::table::{GenericAddress, HEADER_SIZE, Table, TableBuilder};
use crate::plan::{Registers, SerialPlan};

/// Revision 4, the first that names the device in the namespace; Linux takes 2 and later, and tools
/// that decode tables expect the fields of 4.
const REVISION: u8 = 4;
/// The device, see [`super::nodes`], with the NUL that its length includes.
const NAMESPACE_PATH: &[u8; 11] = b"\\_SB_.SER0\0";

/// Interface types (Microsoft, "Debug Port Table 2", serial subtypes).
const INTERFACE_16550: u8 = 0;
/// See [`INTERFACE_16550`].
const INTERFACE_PL011: u8 = 3;

/// Interrupt type bits.
const INTERRUPT_IO_APIC: u8 = 1 << 1;
/// See [`INTERRUPT_IO_APIC`].
const INTERRUPT_GIC: u8 = 1 << 3;

/// The UART stays as it was set up; a virtual one has no line speed.
const BAUD_AS_IS: u8 = 0;
const ONE_STOP_BIT: u8 = 1;
const TERMINAL_VT_UTF8: u8 = 2;
/// PCI vendor and device id of a UART that is no PCI device.
const NOT_PCI: U16 = U16::new(0xffff);

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Body {
    interface: u8,
    reserved_37: [u8; 3],
    base: GenericAddress,
    interrupt_type: u8,
    pc_at_irq: u8,
    gsi: U32,
    baud_rate: u8,
    parity: u8,
    stop_bits: u8,
    flow_control: u8,
    terminal_type: u8,
    language: u8,
    pci_device_id: U16,
    pci_vendor_id: U16,
    pci_bus: u8,
    pci_device: u8,
    pci_function: u8,
    pci_flags: U32,
    pci_segment: u8,
    uart_clock: U32,
    precise_baud_rate: U32,
    namespace_length: U16,
    namespace_offset: U16,
    namespace_path: [u8; NAMESPACE_PATH.len()],
}

const NAMESPACE_OFFSET: usize = HEADER_SIZE + std::mem::offset_of!(Body, namespace_path);
const _: () = assert!(NAMESPACE_OFFSET == 88);

/// The serial port as the guest's console.
pub(super) fn encode(serial: &SerialPlan) -> Table {
    let (interface, base, interrupt_type) = match serial.registers {
        Registers::Pio { base, .. } => (
            INTERFACE_16550,
            GenericAddress::port_u8(base),
            INTERRUPT_IO_APIC,
        ),
        Registers::Mmio(range) => (
            INTERFACE_PL011,
            GenericAddress::mmio_u32(range.start),
            INTERRUPT_GIC,
        ),
    };
    let mut table = TableBuilder::new(*b"SPCR", REVISION);
    table.push(&Body {
        interface,
        reserved_37: [0; 3],
        base,
        interrupt_type,
        pc_at_irq: 0,
        gsi: serial.gsi.into(),
        baud_rate: BAUD_AS_IS,
        parity: 0,
        stop_bits: ONE_STOP_BIT,
        flow_control: 0,
        terminal_type: TERMINAL_VT_UTF8,
        language: 0,
        pci_device_id: NOT_PCI,
        pci_vendor_id: NOT_PCI,
        pci_bus: 0,
        pci_device: 0,
        pci_function: 0,
        pci_flags: U32::ZERO,
        pci_segment: 0,
        // A virtual UART has neither clock nor line speed.
        uart_clock: U32::ZERO,
        precise_baud_rate: U32::ZERO,
        namespace_length: U16::new(NAMESPACE_PATH.len() as u16),
        namespace_offset: U16::new(NAMESPACE_OFFSET as u16),
        namespace_path: *NAMESPACE_PATH,
    });
    table.finish()
}
