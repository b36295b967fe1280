//! Generic Timer Description Table (ACPI 6.5, section 5.2.25) of a guest on KVM.

use arch::aarch64::layout::{
    INTID_TIMER_HYPERVISOR, INTID_TIMER_PHYSICAL, INTID_TIMER_SECURE, INTID_TIMER_VIRTUAL,
};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::table::{HEADER_SIZE, Table, TableBuilder};

/// Revision 3, from ACPI 6.3 on: the one with the virtual EL2 timer.
const REVISION: u8 = 3;

/// Level-triggered is mode 0; bit 1 is active-low polarity.
const LEVEL_LOW: u32 = 1 << 1;
/// The timer wakes its CPU whatever power state that is in. True of a timer that KVM emulates,
/// since every idle state of a vCPU is a host thread that waits.
const ALWAYS_ON: u32 = 1 << 2;

/// Address of a memory-mapped counter that is not provided.
const NOT_PROVIDED: u64 = u64::MAX;

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Body {
    counter_control: U64,
    reserved: U32,
    secure_el1: Timer,
    non_secure_el1: Timer,
    virtual_el1: Timer,
    el2: Timer,
    counter_read: U64,
    platform_timers: U32,
    platform_timer_offset: U32,
    virtual_el2: Timer,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Timer {
    gsiv: U32,
    flags: U32,
}

const _: () = assert!(HEADER_SIZE + size_of::<Body>() == 104);

/// The timers. The EL2 and secure ones have their numbers and nothing more: the guest starts in
/// non-secure EL1.
pub(super) fn encode() -> Table {
    let timer = |gsiv: u32, flags: u32| Timer {
        gsiv: gsiv.into(),
        flags: flags.into(),
    };
    let mut table = TableBuilder::new(*b"GTDT", REVISION);
    table.push(&Body {
        counter_control: NOT_PROVIDED.into(),
        reserved: U32::ZERO,
        secure_el1: timer(INTID_TIMER_SECURE, LEVEL_LOW),
        non_secure_el1: timer(INTID_TIMER_PHYSICAL, LEVEL_LOW | ALWAYS_ON),
        virtual_el1: timer(INTID_TIMER_VIRTUAL, LEVEL_LOW | ALWAYS_ON),
        el2: timer(INTID_TIMER_HYPERVISOR, LEVEL_LOW),
        counter_read: NOT_PROVIDED.into(),
        platform_timers: U32::ZERO,
        platform_timer_offset: U32::ZERO,
        virtual_el2: timer(0, 0),
    });
    table.finish()
}
