//! Buses and the devices that are not PCI functions: serial ports, clocks, the x86 I/O APIC, the
//! ACPI event and sleep registers.
//!
//! A device knows nothing of KVM: its interrupt is an [`InterruptLine`](pci::InterruptLine),
//! its registers are a [`BusDevice`](bus::BusDevice). Its addresses are the plan's business.
//!
//! A device with state has a plain state type: `save` copies it out and `restore` is a constructor
//! that takes it. States come from files that anybody may have written; a value that the registers
//! cannot hold is cut to what they can.

pub mod acpi;
pub mod bus;
pub mod debug_console;
pub mod i8042;
pub mod ioapic;
pub mod nmi_status;
pub mod output;
pub mod pci_config;
pub mod rtc;
pub mod serial;
pub mod virtio;

mod level;
mod lock;
mod registers;
#[cfg(test)]
mod testing;
