use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::{accesses, never_panics, readl, writel};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Send(MsiMessage),
    Route(u8, Option<MsiMessage>, bool),
}

#[derive(Default)]
struct TestPort(Mutex<Vec<Call>>);

impl TestPort {
    /// What was called since the last time.
    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl MsiPort for TestPort {
    fn send(&self, message: MsiMessage) {
        self.0.lock().unwrap().push(Call::Send(message));
    }

    fn set_route(&self, pin: u8, message: Option<MsiMessage>, level: bool) {
        let route = Call::Route(pin, message, level);
        self.0.lock().unwrap().push(route);
    }
}

fn ioapic() -> (Arc<IoApic>, Arc<TestPort>) {
    restored(&IoApicState::default())
}

fn restored(state: &IoApicState) -> (Arc<IoApic>, Arc<TestPort>) {
    let port = Arc::new(TestPort::default());
    (Arc::new(IoApic::restore(state, port.clone())), port)
}

fn get(ioapic: &IoApic, register: u32) -> u32 {
    writel(ioapic, 0x00, register);
    readl(ioapic, 0x10)
}

fn set(ioapic: &IoApic, register: u32, value: u32) {
    writel(ioapic, 0x00, register);
    writel(ioapic, 0x10, value);
}

/// Programs a pin, the high half first as Linux does.
fn program(ioapic: &IoApic, pin: u32, entry: u64) {
    set(ioapic, 0x11 + 2 * pin, (entry >> 32) as u32);
    set(ioapic, 0x10 + 2 * pin, entry as u32);
}

fn entry(ioapic: &IoApic, pin: u32) -> u64 {
    u64::from(get(ioapic, 0x11 + 2 * pin)) << 32 | u64::from(get(ioapic, 0x10 + 2 * pin))
}

fn message(address: u64, data: u32) -> MsiMessage {
    MsiMessage { address, data }
}

const LEVEL: u64 = 0x8000;
const MASKED: u64 = 0x1_0000;
const REMOTE_IRR: u64 = 0x4000;

#[test]
fn identifies_itself_and_starts_masked() {
    let (ioapic, port) = ioapic();
    assert_eq!(get(&ioapic, 0), 0);
    assert_eq!(get(&ioapic, 1), 0x0017_0020);
    for pin in 0..24 {
        assert_eq!(entry(&ioapic, pin), MASKED);
    }
    for register in [3, 0x0f, 0x40, 0xff] {
        assert_eq!(get(&ioapic, register), 0);
        set(&ioapic, register, 0xffff_ffff);
    }
    set(&ioapic, 0, 0xffff_ffff);
    assert_eq!(
        (get(&ioapic, 0), get(&ioapic, 2)),
        (0x0f00_0000, 0x0f00_0000)
    );
    set(&ioapic, 1, 0);
    assert_eq!(get(&ioapic, 1), 0x0017_0020);
    assert_eq!(port.calls(), []);
}

#[test]
fn reserved_bits_of_an_entry_read_as_zero() {
    let (ioapic, _) = ioapic();
    program(&ioapic, 7, u64::MAX);
    // All but the delivery status (12), the remote IRR (14), 48:17.
    assert_eq!(entry(&ioapic, 7), 0xfffe_0000_0001_afff);
}

#[test]
fn an_edge_is_sent_once() {
    let (ioapic, port) = ioapic();
    program(&ioapic, 4, 0x0300_0000_0000_0031);
    let sent = message(0xfee0_3000, 0x31);
    assert_eq!(port.calls(), [Call::Route(4, Some(sent), false)]);
    let line = ioapic.line(4).unwrap();
    line.set_level(true);
    line.set_level(true);
    assert_eq!(port.calls(), [Call::Send(sent)]);
    line.set_level(false);
    ioapic.end_of_interrupt(0x31);
    assert_eq!(port.calls(), []);
    line.pulse();
    assert_eq!(port.calls(), [Call::Send(sent)]);
    assert_eq!(entry(&ioapic, 4) & REMOTE_IRR, 0);
}

#[test]
fn an_edge_on_a_masked_pin_is_lost() {
    let (ioapic, port) = ioapic();
    let line = ioapic.line(4).unwrap();
    line.set_level(true);
    program(&ioapic, 4, 0x31);
    assert_eq!(
        port.calls(),
        [Call::Route(4, Some(message(0xfee0_0000, 0x31)), false)]
    );
    program(&ioapic, 4, MASKED | 0x31);
    line.pulse();
    assert_eq!(port.calls(), [Call::Route(4, None, false)]);
}

#[test]
fn a_level_is_sent_again_after_its_end() {
    let (ioapic, port) = ioapic();
    program(&ioapic, 9, LEVEL | 0x52);
    let sent = message(0xfee0_0000, 0xc052);
    assert_eq!(port.calls(), [Call::Route(9, Some(sent), true)]);
    let line = ioapic.line(9).unwrap();
    line.set_level(true);
    assert_eq!(port.calls(), [Call::Send(sent)]);
    assert_eq!(entry(&ioapic, 9), LEVEL | REMOTE_IRR | 0x52);
    // Until the end it is one interrupt, however the line moves.
    line.set_level(false);
    line.set_level(true);
    ioapic.end_of_interrupt(0x51);
    assert_eq!(port.calls(), []);
    ioapic.end_of_interrupt(0x52);
    assert_eq!(port.calls(), [Call::Send(sent)]);
    line.set_level(false);
    ioapic.end_of_interrupt(0x52);
    assert_eq!(port.calls(), []);
    assert_eq!(entry(&ioapic, 9), LEVEL | 0x52);
    line.set_level(true);
    assert_eq!(port.calls(), [Call::Send(sent)]);
}

/// Linux with version 0x20 (`io_apic_eoi`), for a local APIC that keeps its EOIs to itself.
#[test]
fn the_eoi_register_ends_an_interrupt() {
    let (ioapic, port) = ioapic();
    program(&ioapic, 9, LEVEL | 0x52);
    let line = ioapic.line(9).unwrap();
    line.set_level(true);
    line.set_level(false);
    writel(&*ioapic, 0x40, 0x52);
    assert_eq!(entry(&ioapic, 9), LEVEL | 0x52);
    line.set_level(true);
    let sent = Call::Send(message(0xfee0_0000, 0xc052));
    assert_eq!(port.calls()[1..], [sent, sent]);
}

/// Linux masks a threaded interrupt before it ends it and unmasks it when it has been dealt with.
#[test]
fn a_masked_level_can_be_ended_and_is_sent_when_unmasked() {
    let (ioapic, port) = ioapic();
    program(&ioapic, 9, LEVEL | 0x52);
    let line = ioapic.line(9).unwrap();
    line.set_level(true);
    port.calls();
    set(&ioapic, 0x10 + 18, 0x1_8052);
    ioapic.end_of_interrupt(0x52);
    // The route has not changed: the kernel went on reporting the vector's ends.
    assert_eq!(port.calls(), []);
    assert_eq!(entry(&ioapic, 9), MASKED | LEVEL | 0x52);
    set(&ioapic, 0x10 + 18, 0x8052);
    assert_eq!(port.calls(), [Call::Send(message(0xfee0_0000, 0xc052))]);
}

/// How a guest without an EOI register clears the remote IRR.
#[test]
fn switching_to_edge_and_back_ends_an_interrupt() {
    let (ioapic, port) = ioapic();
    program(&ioapic, 9, LEVEL | 0x52);
    let line = ioapic.line(9).unwrap();
    line.set_level(true);
    set(&ioapic, 0x10 + 18, 0x1_0052);
    assert_eq!(entry(&ioapic, 9) & REMOTE_IRR, 0);
    line.set_level(false);
    set(&ioapic, 0x10 + 18, 0x8052);
    assert_eq!(entry(&ioapic, 9), LEVEL | 0x52);
    let sends = port.calls().into_iter();
    assert_eq!(
        sends.filter(|call| matches!(call, Call::Send(_))).count(),
        1
    );
}

#[test]
fn destinations_and_modes_become_msi_bits() {
    let (ioapic, port) = ioapic();
    // Destination 0x7fed: bits 7:0 in 63:56, bits 14:8 in 55:49; logical; lowest priority.
    program(&ioapic, 1, 0xed << 56 | 0x7f << 49 | 0x900 | 0x77);
    let calls = port.calls();
    let expected = message(0xfee0_0000 | 0xed << 12 | 0x7f << 5 | 1 << 2, 0x177);
    assert_eq!(calls.last(), Some(&Call::Route(1, Some(expected), false)));
}

#[test]
fn pins_that_share_a_vector_end_together() {
    let (ioapic, port) = ioapic();
    let lines = [10, 11].map(|pin| {
        program(&ioapic, pin, LEVEL | 0x60);
        ioapic.line(pin as u8).unwrap()
    });
    lines.iter().for_each(|line| line.set_level(true));
    port.calls();
    lines[0].set_level(false);
    ioapic.end_of_interrupt(0x60);
    assert_eq!(port.calls().len(), 1);
    assert_eq!(entry(&ioapic, 10) & REMOTE_IRR, 0);
    assert_eq!(entry(&ioapic, 11) & REMOTE_IRR, REMOTE_IRR);
}

#[test]
fn a_resampled_pin_is_released_at_the_end_and_asserted_by_who_is_not_done() {
    let (ioapic, port) = ioapic();
    program(&ioapic, 16, LEVEL | 0x61);
    program(&ioapic, 17, LEVEL | 0x62);
    let line = ioapic.line(16).unwrap();
    let ends = Arc::new(Mutex::new(0));
    // The device needs the interrupt twice.
    let on_end = {
        let (line, ends) = (Arc::clone(&line), Arc::clone(&ends));
        move || {
            *ends.lock().unwrap() += 1;
            line.set_level(*ends.lock().unwrap() == 1);
        }
    };
    ioapic.resample(16, Arc::new(on_end));
    port.calls();
    line.set_level(true);
    let sent = Call::Send(message(0xfee0_0000, 0xc061));
    assert_eq!(port.calls(), [sent]);
    ioapic.end_of_interrupt(0x62);
    assert_eq!((*ends.lock().unwrap(), port.calls()), (0, vec![]));
    ioapic.end_of_interrupt(0x61);
    assert_eq!((*ends.lock().unwrap(), port.calls()), (1, vec![sent]));
    ioapic.end_of_interrupt(0x61);
    assert_eq!((*ends.lock().unwrap(), port.calls()), (2, vec![]));
    assert_eq!(entry(&ioapic, 16), LEVEL | 0x61);
}

#[test]
fn there_are_24_pins() {
    let (ioapic, _) = ioapic();
    assert!(ioapic.line(23).is_some());
    assert!(ioapic.line(24).is_none());
}

#[test]
fn restoring_tells_all_routes_and_repeats_no_interrupt() {
    let (ioapic, _) = ioapic();
    program(&ioapic, 4, 0x31);
    program(&ioapic, 9, LEVEL | 0x52);
    ioapic.line(9).unwrap().set_level(true);
    ioapic.line(4).unwrap().set_level(true);
    let (copy, port) = restored(&ioapic.save());
    let edge = Call::Route(4, Some(message(0xfee0_0000, 0x31)), false);
    let sent = message(0xfee0_0000, 0xc052);
    assert_eq!(port.calls(), [edge, Call::Route(9, Some(sent), true)]);
    // The restored devices drive their lines to where they were.
    copy.line(9).unwrap().set_level(true);
    copy.line(4).unwrap().set_level(true);
    assert_eq!(port.calls(), []);
    copy.end_of_interrupt(0x52);
    assert_eq!(port.calls(), [Call::Send(sent)]);
}

proptest! {
    #[test]
    fn state_round_trips(accesses in accesses(), levels: u32) {
        let (ioapic, _) = ioapic();
        for access in &accesses {
            access.apply(&*ioapic);
        }
        for pin in 0..24_u8 {
            ioapic.line(pin).unwrap().set_level(levels >> pin & 1 != 0);
        }
        let json = serde_json::to_string(&ioapic.save()).unwrap();
        let (copy, port) = restored(&serde_json::from_str(&json).unwrap());
        prop_assert_eq!(copy.save(), ioapic.save());
        let resent = port.calls().into_iter().any(|call| matches!(call, Call::Send(_)));
        prop_assert!(!resent);
    }

    /// Whatever the guest programs and the device does: a level-triggered, unmasked pin that is
    /// asserted is always an interrupt in flight, and each interrupt is sent for an asserted pin.
    #[test]
    fn no_asserted_level_is_forgotten(steps in vec((0..4_u8, any::<bool>(), any::<bool>()), 1..64)) {
        let (ioapic, port) = ioapic();
        let line = ioapic.line(3).unwrap();
        let mut asserted = false;
        for (action, first, second) in steps {
            match action {
                0 | 1 => { asserted = first; line.set_level(first) }
                2 => ioapic.end_of_interrupt(0x44),
                _ => {
                    let level = if first { LEVEL } else { 0 };
                    let masked = if second { MASKED } else { 0 };
                    program(&ioapic, 3, level | masked | 0x44);
                }
            }
            let now = entry(&ioapic, 3);
            if asserted && now & LEVEL != 0 && now & MASKED == 0 {
                prop_assert_ne!(now & REMOTE_IRR, 0);
            }
            let sent = port.calls().into_iter().any(|call| matches!(call, Call::Send(_)));
            prop_assert!(!sent || asserted);
        }
    }
}

#[test]
fn no_access_panics() {
    never_panics(|| IoApic::new(Arc::new(TestPort::default())));
}
