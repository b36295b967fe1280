//! PCI as a probe guest finds it, with the simulated device behind vfio-user: configuration space both
//! ways, BARs that the guest moves, and what it cannot do with them.
#![cfg(target_arch = "x86_64")]

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tests::CoherentDevice;
use tests::coherent_device::Options;
use tests::probe::{Probe, Report};

/// Where x86_64 guests have ECAM of segment 0, and the 32-bit window.
const ECAM: u64 = 0xe800_0000;
const WINDOW: u64 = 0xc000_0000;
/// The device is the first in a slot of its own.
const DEVICE: u64 = 1;
/// Registers of its configuration space.
const COMMAND: u64 = 0x04;
const BAR0: u64 = 0x10;
const BAR4: u64 = 0x20;
const MEMORY_DECODING: u64 = 1 << 1;
const PREFETCHABLE_64_BIT: u64 = 0xc;
/// What register 0 of the device's BAR 0 says, and what nobody says.
const BOOT_0: u64 = 0x1800_00a1;
const NOBODY: u64 = 0xffff_ffff;

/// Words that make up what a guest does; answers come in the order of those that have some.
#[derive(Default)]
struct Guest {
    words: Vec<String>,
    answers: usize,
}

impl Guest {
    fn write_config(&mut self, register: u64, value: u64) {
        let address = ECAM + (DEVICE << 15) + register;
        self.words.push(format!("writel={address:#x}:{value:#x}"));
    }

    fn read(&mut self, address: u64) {
        self.words.push(format!("readl={address:#x}"));
        self.answers += 1;
    }

    fn write(&mut self, address: u64, value: u64) {
        self.words.push(format!("writel={address:#x}:{value:#x}"));
    }

    fn read_config(&mut self, register: u64) {
        self.read(ECAM + (DEVICE << 15) + register);
    }

    /// Reads a register through the I/O ports.
    fn read_config_by_ports(&mut self, register: u64) {
        let address = 1 << 31 | DEVICE << 11 | register;
        self.words.push(format!("outl=0xcf8:{address:#x}"));
        self.words.push("inl=0xcfc".to_owned());
        self.answers += 1;
    }

    /// Moves BAR 4, whose address has 64 bits.
    fn move_bar4(&mut self, address: u64) {
        self.write_config(BAR4, address | PREFETCHABLE_64_BIT);
        self.write_config(BAR4 + 4, address >> 32);
    }

    /// Runs the guest, and returns the answers.
    fn run(self, device: &CoherentDevice) -> Vec<u64> {
        let socket = format!("socket={}", device.socket().display());
        let memory = ["--memory", "size=64M,shared=on", "--user-device", &socket];
        let report: Report = Probe::run(&memory, &format!("{} poweroff", self.words.join(" ")));
        report.assert_success();
        let answers: Vec<u64> = report
            .output
            .lines()
            .filter(|line| line.starts_with("readl") || line.starts_with("inl"))
            .map(|line| {
                let number = line.rsplit(' ').next().and_then(|n| n.strip_prefix("0x"));
                let number = number.and_then(|digits| u64::from_str_radix(digits, 16).ok());
                number.unwrap_or_else(|| panic!("{line}"))
            })
            .collect();
        assert_eq!(answers.len(), self.answers, "{}", report.output);
        answers
    }
}

fn device() -> CoherentDevice {
    let program = Path::new(env!("CARGO_BIN_EXE_coherent_device"));
    CoherentDevice::start_program(program, Options::default()).unwrap()
}

#[test]
fn configuration_space_is_the_same_both_ways() {
    let mut guest = Guest::default();
    for register in [0x00, 0x08, BAR0, BAR4, 0x2c, 0x34] {
        guest.read_config(register);
        guest.read_config_by_ports(register);
    }
    guest.read(ECAM);
    guest.read(ECAM + (31 << 15));
    let answers = guest.run(&device());
    let (pairs, rest) = answers.split_at(12);
    assert_eq!(pairs[0], 0x2342_10de);
    assert_eq!(pairs[2] >> 8, 0x03_0200);
    // BAR 0 is where the plan has put it, and BAR 4 above 4 GiB.
    assert_eq!((pairs[4], pairs[6]), (WINDOW, PREFETCHABLE_64_BIT));
    for pair in pairs.chunks(2) {
        assert_eq!(pair[0], pair[1]);
    }
    // The host bridge, and a slot with nothing in it.
    assert_eq!(rest, [0x0008_1b36, NOBODY]);
}

#[test]
fn registers_follow_their_bar() {
    const ELSEWHERE: u64 = WINDOW + 0x0400_0000;
    let mut guest = Guest::default();
    guest.read(WINDOW);
    guest.write_config(COMMAND, MEMORY_DECODING);
    guest.read(WINDOW);
    guest.write_config(BAR0, ELSEWHERE);
    guest.read(WINDOW);
    guest.read(ELSEWHERE);
    // As a system does that looks for the size.
    guest.write_config(BAR0, NOBODY);
    guest.read_config(BAR0);
    guest.read(ELSEWHERE);
    guest.write_config(BAR0, ELSEWHERE);
    guest.read(ELSEWHERE);
    guest.write_config(COMMAND, 0);
    guest.read(ELSEWHERE);
    let expected = [
        NOBODY,
        BOOT_0,
        NOBODY,
        BOOT_0,
        0xff00_0000,
        NOBODY,
        BOOT_0,
        NOBODY,
    ];
    assert_eq!(guest.run(&device()), expected);
}

#[test]
fn memory_follows_its_bar_and_is_the_devices() {
    const SIZE: u64 = 512 << 20;
    const OFFSET: u64 = 0x0123_4560;
    let device = device();
    let mut guest = Guest::default();
    // Out of the way of BAR 4, which is as large as most of the window.
    guest.write_config(BAR0, WINDOW + SIZE);
    guest.move_bar4(WINDOW);
    guest.write_config(COMMAND, MEMORY_DECODING);
    guest.write(WINDOW + OFFSET, 0x0bad_cafe);
    guest.read(WINDOW + OFFSET);
    // Above 4 GiB, where this guest cannot reach it, and back.
    guest.move_bar4(SIZE << 8);
    guest.read(WINDOW + OFFSET);
    guest.move_bar4(WINDOW);
    guest.read(WINDOW + OFFSET);
    assert_eq!(guest.run(&device), [0x0bad_cafe, NOBODY, 0x0bad_cafe]);
    let mut bytes = [0; 4];
    let memory = device.memory().unwrap();
    memory.read_exact_at(&mut bytes, OFFSET).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), 0x0bad_cafe);
}

#[test]
fn no_bar_covers_ram_or_registers_of_the_machine() {
    const RAM: u64 = 32 << 20;
    let mut guest = Guest::default();
    guest.write(RAM, 0x1234_5678);
    // RAM, ECAM, the I/O APIC: the BAR is nowhere then.
    for place in [RAM, ECAM, 0xfe00_0000] {
        guest.write_config(COMMAND, 0);
        guest.write_config(BAR0, place);
        guest.write_config(COMMAND, MEMORY_DECODING);
        guest.read(WINDOW);
    }
    guest.read(RAM);
    // The I/O APIC's version, by its two registers.
    guest.write(0xfec0_0000, 1);
    guest.read(0xfec0_0010);
    // And back again.
    guest.write_config(BAR0, WINDOW);
    guest.read(WINDOW);
    let expected = [NOBODY, NOBODY, NOBODY, 0x1234_5678, 0x0017_0020, BOOT_0];
    assert_eq!(guest.run(&device()), expected);
}

/// Between the windows and what the machine has there is room that nobody answers in: a host bridge
/// does not pass it on, whether registers or memory are to be there.
#[test]
fn no_bar_answers_outside_the_windows() {
    const OUTSIDE: u64 = 0xf000_0000;
    const BAR2: u64 = 0x18;
    let mut guest = Guest::default();
    guest.write_config(BAR0, OUTSIDE);
    guest.write_config(BAR2, OUTSIDE + 0x0200_0000);
    guest.write_config(BAR2 + 4, 0);
    guest.write_config(COMMAND, MEMORY_DECODING);
    guest.read(OUTSIDE);
    guest.write(OUTSIDE + 0x0200_0000, 0x1234_5678);
    guest.read(OUTSIDE + 0x0200_0000);
    // Inside, both are there.
    guest.write_config(BAR0, WINDOW);
    guest.write_config(BAR2, WINDOW + 0x0200_0000);
    guest.read(WINDOW);
    guest.write(WINDOW + 0x0200_0000, 0x1234_5678);
    guest.read(WINDOW + 0x0200_0000);
    let expected = [NOBODY, NOBODY, BOOT_0, 0x1234_5678];
    assert_eq!(guest.run(&device()), expected);
}

/// Whatever is written where, the machine goes on and the device is what it was.
#[test]
fn nonsense_in_configuration_space_changes_no_identity() {
    // xorshift64: the same nonsense each time.
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..8 {
        let mut guest = Guest::default();
        // As many as a command line has room for.
        for _ in 0..50 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            guest.write_config(seed % 1024 * 4, seed >> 32);
        }
        guest.read_config(0x00);
        guest.read_config(0x08);
        let answers = guest.run(&device());
        assert_eq!((answers[0], answers[1] >> 8), (0x2342_10de, 0x03_0200));
    }
}
