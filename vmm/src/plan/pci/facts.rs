//! Whether what is said of a device can be: facts are read from files too, and a plan divides and
//! aligns by them.

use ::pci::config_space::BarKind;
use ::pci::{BarFacts, CoherentMemory, DeviceFacts};

/// Base address registers of a function.
const REGISTERS: u8 = 6;

/// What is wrong with a device's BARs, if anything is.
pub(super) fn fault(facts: &DeviceFacts) -> Option<String> {
    let DeviceFacts {
        identity: _,
        bars,
        intx: _,
        driver: _,
        coherent,
    } = facts;
    let mut free = 0;
    for bar in bars {
        let BarFacts {
            index,
            kind,
            size,
            mappable,
        } = *bar;
        let (registers, least, most) = limits(kind);
        if index < free || index > REGISTERS - registers {
            return Some(format!(
                "BAR {index} is where another is, or behind the last register"
            ));
        }
        free = index + registers;
        if !size.is_power_of_two() || !(least..=most).contains(&size) {
            return Some(format!(
                "BAR {index} has {size:#x} bytes, which is no power of two from {least:#x} to {most:#x}"
            ));
        }
        if mappable > size {
            return Some(format!(
                "BAR {index} has {size:#x} bytes, and {mappable:#x} that can be mapped"
            ));
        }
    }
    let CoherentMemory { bar, usable } = coherent.as_ref()?;
    match bars.iter().find(|facts| facts.index == *bar) {
        None => Some(format!("it has memory in BAR {bar}, which it has not")),
        Some(BarFacts { size, .. }) if usable > size => Some(format!(
            "BAR {bar} has {size:#x} bytes, and {usable:#x} of memory"
        )),
        Some(_) => None,
    }
}

/// Registers that a BAR takes, and the least and the most bytes that it can have (PCI 3.0, section
/// 6.2.5.1).
fn limits(kind: BarKind) -> (u8, u64, u64) {
    match kind {
        BarKind::Io => (1, 4, 256),
        BarKind::Memory32 { .. } => (1, 16, 1 << 31),
        BarKind::Memory64 { .. } => (2, 16, 1 << 63),
    }
}
