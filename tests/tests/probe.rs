//! What a guest sees and may do, by probe guests on this machine's KVM.
#![cfg(target_arch = "x86_64")]

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tests::probe::{Probe, Record, Report};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Types of the PVH memory map, those of E820.
const RAM: u64 = 1;
const ACPI: u64 = 3;

/// RAM from 1 MiB up, as disjoint ranges: neighbouring entries, ACPI tables included, joined.
fn ram_above_1_mib(map: &[(u64, u64, u64)]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut last_end = 0;
    for &(start, size, kind) in map {
        assert!(start >= last_end, "not ascending: {map:x?}");
        last_end = start + size;
        if start < MIB || !matches!(kind, RAM | ACPI) {
            continue;
        }
        match ranges.last_mut() {
            Some((_, end)) if *end == start => *end = last_end,
            _ => ranges.push((start, last_end)),
        }
    }
    ranges
}

fn assert_conventional_memory(map: &[(u64, u64, u64)]) {
    let (start, size, kind) = map[0];
    assert_eq!((start, kind), (0, RAM));
    assert!((512 * 1024..=640 * 1024).contains(&size), "{size:#x}");
    for &(start, size, kind) in map {
        let in_bios_area = start < MIB && start + size > 0xa_0000;
        assert!(!in_bios_area || kind != RAM, "{map:x?}");
    }
}

#[test]
fn memory_map_of_512_mib() {
    let report = Probe::run(
        &["--memory", "size=512M"],
        "memmap writel=0x1ffeffe0:0x1234567 readl=0x1ffeffe0 readl=0x20000000 poweroff",
    );
    report.assert_success();
    let map = report.memory_map();
    assert_conventional_memory(&map);
    assert_eq!(ram_above_1_mib(&map), [(MIB, 512 * MIB)]);
    assert_eq!(report.numbers("readl=0x1ffeffe0"), [0x0123_4567]);
    // Nothing answers behind the end.
    assert_eq!(report.numbers("readl=0x20000000"), [0xffff_ffff]);
}

#[test]
fn memory_map_of_5_gib_leaves_a_hole_below_4_gib() {
    let report = Probe::run(
        &["--memory", "size=5G"],
        "memmap writeq=0x17ffffff8:0x1122334455667788 readq=0x17ffffff8 \
         writeb=0x100000000:0xa5 readb=0x100000000 readl=0x180000000 poweroff",
    );
    report.assert_success();
    let map = report.memory_map();
    assert_conventional_memory(&map);
    assert_eq!(
        ram_above_1_mib(&map),
        [(MIB, 3 * GIB), (4 * GIB, 6 * GIB)],
        "{map:x?}"
    );
    assert_eq!(report.numbers("readq=0x17ffffff8"), [0x1122_3344_5566_7788]);
    assert_eq!(report.numbers("readb=0x100000000"), [0xa5]);
    assert_eq!(report.numbers("readl=0x180000000"), [0xffff_ffff]);
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn table<'a>(tables: &'a [Record], name: &str) -> &'a Record {
    tables
        .iter()
        .find(|table| table.name == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn acpi_tables_are_where_the_memory_map_says_and_add_up() {
    for memory in ["size=512M", "size=5G"] {
        let report = Probe::run(&["--memory", memory], "memmap acpi poweroff");
        report.assert_success();
        let rsdp = report.records("rsdp");
        assert_eq!(rsdp.len(), 2);
        assert!(rsdp.iter().all(|part| part.checksum_ok));
        assert!(rsdp[0].bytes.starts_with(b"RSD PTR "));
        // Where a kernel that was not told its address scans for it.
        assert!((0xe_0000..0x10_0000).contains(&rsdp[0].address));
        assert_eq!(rsdp[0].address % 16, 0);

        let map = report.memory_map();
        let tables = report.records("table");
        for table in &tables {
            assert!(table.checksum_ok, "{}", table.name);
            assert_eq!(u32_at(&table.bytes, 4) as usize, table.bytes.len());
            let end = table.address + table.bytes.len() as u64;
            assert!(
                map.iter().any(|&(start, size, kind)| kind == ACPI
                    && (start..start + size).contains(&table.address)
                    && end <= start + size),
                "{} at {:#x} is not in {map:x?}",
                table.name,
                table.address
            );
        }
        assert_eq!(u64_at(&rsdp[1].bytes, 24), table(&tables, "XSDT").address);
        let fadt = table(&tables, "FACP");
        assert_eq!(u64_at(&fadt.bytes, 140), table(&tables, "DSDT").address);
        // HW_REDUCED_ACPI and RESET_REG_SUP.
        assert_eq!(
            u32_at(&fadt.bytes, 112) & (1 << 20 | 1 << 10),
            1 << 20 | 1 << 10
        );
    }
}

/// Local APICs of a MADT, x2APIC ones included: id and flags (ACPI 6.5, tables 5.22 and 5.34).
fn local_apics(madt: &Record) -> Vec<(u32, u32)> {
    let mut apics = Vec::new();
    let mut rest = &madt.bytes[44..];
    while let [kind, length, ..] = *rest {
        let (entry, tail) = rest.split_at(usize::from(length));
        match kind {
            0 => apics.push((u32::from(entry[3]), u32_at(entry, 4))),
            9 => apics.push((u32_at(entry, 4), u32_at(entry, 8))),
            _ => {}
        }
        rest = tail;
    }
    apics
}

/// 9 threads and 9 cores take 4 bits of an APIC id each, so CPU 81, the first of the second package,
/// has id 256: a vCPU that KVM creates with 32-bit ids, and an x2APIC entry.
#[test]
fn apic_ids_above_254_are_created_and_described() {
    let options = ["--cpus", "boot=82,max=243,topology=9:9:1:3"];
    let report = Probe::run(&options, "acpi poweroff");
    report.assert_success();
    let apics = local_apics(table(&report.records("table"), "APIC"));
    assert_eq!(apics.len(), 243);
    let running: Vec<u32> = apics
        .iter()
        .filter(|(_, flags)| flags & 1 != 0)
        .map(|(id, _)| *id)
        .collect();
    assert_eq!(running.len(), 82);
    assert_eq!(running[80..], [0x88, 0x100]);
}

#[test]
fn madt_lists_all_cpus_and_which_of_them_run() {
    let report = Probe::run(&["--cpus", "boot=2,max=5"], "acpi poweroff");
    report.assert_success();
    let apics = local_apics(table(&report.records("table"), "APIC"));
    // Bit 0: enabled, bit 1: can be enabled later.
    let flags: Vec<u32> = apics.iter().map(|(_, flags)| *flags).collect();
    assert_eq!(flags, [1, 1, 2, 2, 2]);

    let report = Probe::run(&["--cpus", "boot=254"], "acpi poweroff");
    report.assert_success();
    let apics = local_apics(table(&report.records("table"), "APIC"));
    assert_eq!(apics.len(), 254);
    assert!(apics.iter().all(|(_, flags)| *flags == 1));
    let mut ids: Vec<u32> = apics.iter().map(|(id, _)| *id).collect();
    ids.dedup();
    assert_eq!(ids.len(), 254);
}

#[test]
fn cpuid_shows_the_topology() {
    let report = Probe::run(
        &["--cpus", "boot=8,topology=2:2:1:2"],
        "cpuid=1 cpuid=0xb:0 cpuid=0xb:1 cpuid=0xb:2 poweroff",
    );
    report.assert_success();
    // Hypervisor present; APIC id 0.
    let leaf1 = report.numbers("cpuid=1");
    assert_eq!(leaf1[2] >> 31, 1);
    assert_eq!(leaf1[1] >> 24, 0);
    // Intel SDM, volume 2A, CPUID leaf 0BH: shift, logical processors, level type and number.
    let threads = report.numbers("cpuid=0xb:0");
    assert_eq!(threads, [1, 2, 0x100, 0]);
    let cores = report.numbers("cpuid=0xb:1");
    assert_eq!(cores, [2, 4, 0x201, 0]);
    let end = report.numbers("cpuid=0xb:2");
    assert_eq!((end[0], end[1], end[2] >> 8), (0, 0, 0));
}

#[test]
fn smbios_tells_what_the_platform_option_says() {
    let report = Probe::run(
        &[
            "--platform",
            "system_serial_number=SN-4711,system_uuid=00112233-4455-6677-8899-aabbccddeeff,\
             oem_strings=[first,second],chassis_asset_tag=rack-7",
        ],
        "smbios poweroff",
    );
    report.assert_success();
    let records = report.records("smbios");
    let [entry, structures] = &records[..] else {
        panic!("{records:x?}");
    };
    assert_eq!(&entry.bytes[..5], b"_SM3_");
    assert!(entry.checksum_ok);
    assert_eq!(entry.bytes[7], 3, "major version");
    for text in ["SN-4711", "first", "second", "rack-7"] {
        let bytes = [text.as_bytes(), b"\0"].concat();
        assert!(
            structures.bytes.windows(bytes.len()).any(|w| w == bytes),
            "{text}"
        );
    }
    // SMBIOS 3.7, section 7.2.1: the first three fields are little-endian.
    let uuid = [
        0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee,
        0xff,
    ];
    assert!(structures.bytes.windows(16).any(|w| w == uuid));
}

#[test]
fn initramfs_arrives_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("initramfs");
    let content: Vec<u8> = (0..10_001_u32).map(|i| ((i * i) >> 3) as u8).collect();
    fs::write(&path, &content).unwrap();
    let path = path.to_str().unwrap();
    let report = Probe::run(&["--initramfs", path], "modules poweroff");
    report.assert_success();
    let [module] = &report.records("module")[..] else {
        panic!("{}", report.output);
    };
    assert!(module.bytes == content);
    assert_eq!(module.address % 4096, 0);
}

#[test]
fn triple_fault_is_a_failure_with_registers() {
    let report = Probe::run(&[], "triple");
    assert_eq!(report.status.code(), Some(1), "{report:?}");
    assert!(report.errors.contains("triple fault"), "{report:?}");
    for register in ["rip", "rsp", "rflags", "cr0", "cr3"] {
        let at = format!("{register} 0x0");
        assert!(report.errors.contains(&at), "{register}: {}", report.errors);
    }
}

/// Neither reads nor writes of ports, of any width, aligned or not, harm the VMM.
#[test]
fn hostile_port_accesses_are_survived() {
    // Left out: the serial port, which the probe prints to, 0x64, which resets, and the sleep
    // registers at 0x600 to 0x602 with what overlaps them.
    let reads = "sweepin=0:0x3f4 sweepin=0x400:0xd20 sweepin=0xfff0:0xffff";
    let mut words = reads.to_owned();
    for value in ["0xffffffff", "0x80000000", "0"] {
        for range in [
            "0:0x60",
            "0x65:0x3f4",
            "0x400:0x5fc",
            "0x603:0xd20",
            "0xfff0:0xffff",
        ] {
            words += &format!(" sweepout={range}:{value}");
        }
    }
    let report = Probe::run(&[], &format!("{words} poweroff"));
    report.assert_success();
    assert_eq!(report.output.matches(": done").count(), 3 + 3 * 5);
}

#[test]
fn string_instructions_are_as_many_single_accesses() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let option = format!("file={}", log.display());
    let report = Probe::run(
        &["--debug-console", &option],
        "outsb=0xe9:52 outsb=0x3f8:26 insb=0xe9:3 insw=0x64:2000 insl=0x3fd:1000 insl=0xcfd:1000 \
         outsb=0x70:4096 outsw=0x60:1000 outsl=0x608:1000 poweroff",
    );
    report.assert_success();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    assert_eq!(fs::read_to_string(&log).unwrap(), alphabet.repeat(2));
    assert_eq!(report.lines("outsb=0x3f8:26"), [alphabet]);
    assert_eq!(report.lines("insb=0xe9:3"), ["e9e9e9"]);
}

#[test]
fn memory_without_a_device_reads_ones_and_swallows_writes() {
    let report = Probe::run(
        &[],
        "readb=0xd0000001 readw=0xd0000ffe readl=0xe7fffffe readq=0xd0000ffc \
         writeq=0xd0000ffc:0x1122334455667788 writeb=0xffffffff:1 readq=0xd0000ffc \
         readq=0xfec00001 writeq=0xfec00003:0x1122334455667788 readl=0xfec00ffe poweroff",
    );
    report.assert_success();
    assert_eq!(report.numbers("readb=0xd0000001"), [0xff]);
    assert_eq!(report.numbers("readw=0xd0000ffe"), [0xffff]);
    assert_eq!(report.lines("readq=0xd0000ffc").len(), 2);
    for line in report.lines("readq=0xd0000ffc") {
        assert_eq!(line, "0xffffffffffffffff");
    }
}

/// Boots, resets in each way there is, powers off, all by what it is told on its serial port.
#[test]
fn resets_boot_again_in_the_same_process() {
    let mut guest = Probe::start(&["--memory", "size=64M"], "listen");
    for (boot, way) in ["reset", "outb=0x64:0xfe", "reset", "poweroff"]
        .iter()
        .enumerate()
    {
        guest.wait_for("listen: ready", boot + 1);
        // What the last boot wrote is gone.
        guest.send("readl=0x2000000\n");
        guest.send("writel=0x2000000:1\n");
        guest.send(&format!("{way}\n"));
    }
    let report = guest.wait();
    report.assert_success();
    assert_eq!(report.output.matches("probe: up").count(), 4);
    assert_eq!(report.lines("readl=0x2000000"), ["0x0"; 4]);
}

#[test]
fn serial_input_of_any_length_arrives() {
    let mut guest = Probe::start(&[], "echo=20000 poweroff");
    let text: String = (0..20_000)
        .map(|i| char::from(b'!' + (i * 7 % 90) as u8))
        .collect();
    guest.send(&text);
    let report = guest.wait();
    report.assert_success();
    assert!(report.lines("echo=20000") == [text.as_str()]);
}

#[test]
fn serial_to_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let option = format!("file={}", path.display());
    let report = Probe::run(&["--serial", &option], "inb=0x80 poweroff");
    report.assert_success();
    assert_eq!(report.output, "");
    let log = fs::read_to_string(&path).unwrap();
    assert!(log.starts_with("probe: up\ninb=0x80: "), "{log}");
}

fn read_until(mut from: impl Read, text: &str) -> String {
    let mut received = Vec::new();
    let mut byte = [0];
    while !received.ends_with(text.as_bytes()) {
        from.read_exact(&mut byte).unwrap();
        received.push(byte[0]);
    }
    String::from_utf8(received).unwrap()
}

#[test]
fn serial_socket_stays_connected_over_a_reset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial");
    let option = format!("socket={}", path.display());
    let guest = Probe::start(&["--serial", &option], "listen");
    let mut client = connect(&path);
    assert_eq!(read_until(&client, "ready\n"), "probe: up\nlisten: ready\n");
    client.write_all(b"reset\n").unwrap();
    assert_eq!(
        read_until(&client, "ready\n"),
        "reset:\nprobe: up\nlisten: ready\n"
    );
    client.write_all(b"poweroff\n").unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "poweroff:\n");
    guest.wait().assert_success();
    assert!(!path.exists());
}

#[test]
fn serial_pty_keeps_its_path_over_a_reset() {
    let guest = Probe::start(&["--serial", "pty"], "listen");
    let mut path = None;
    wait_until("the path", || {
        let errors = guest.errors();
        let start = errors.find("/dev/pts/");
        path = start.and_then(|start| Some(errors[start..].split_once('\n')?.0.to_owned()));
        path.is_some()
    });
    for end in ["reset", "poweroff"] {
        // As a user does who comes, looks and goes.
        let mut terminal = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(path.as_ref().unwrap())
            .unwrap();
        assert!(read_until(&terminal, "ready\n").ends_with("listen: ready\n"));
        writeln!(terminal, "{end}").unwrap();
        assert_eq!(read_until(&terminal, ":\n"), format!("{end}:\n"));
    }
    let report = guest.wait();
    report.assert_success();
    assert_eq!(report.output, "");
}

#[test]
fn vcpus_stay_on_the_host_cpus_they_are_given() {
    let mut guest = Probe::start(
        &[
            "--serial",
            "tty",
            "--cpus",
            "boot=3,affinity=[0@[0],2@[0-0]]",
        ],
        "listen",
    );
    guest.wait_for("listen: ready", 1);
    let allowed = tests::vcpu_affinity(guest.pid()).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let everywhere = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap();
    assert_eq!(allowed, ["0", everywhere.trim(), "0"]);
    guest.send("poweroff\n");
    guest.wait().assert_success();
}

/// On a real terminal, that of script(1): Ctrl-C goes to the guest, and whichever way the VMM ends,
/// the terminal is left as it was found.
#[test]
fn terminal_is_raw_while_the_guest_runs_and_restored_after() {
    for (end, code) in [("poweroff", "0"), ("triple", "1"), ("TERM", "0")] {
        let dir = tempfile::tempdir().unwrap();
        let vmm = format!("{:?}", Probe::command(&[], "listen"));
        let script = format!(
            "stty -g >before; sh -c 'echo $$ >pid; exec {vmm}'; echo $? >code; stty -g >after"
        );
        let mut guest = Probe::spawn(
            Command::new("script")
                .args(["-q", "-c", &script, "/dev/null"])
                .env("SHELL", "/bin/sh")
                .current_dir(&dir),
        );
        let file = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        guest.wait_for("listen: ready", 1);
        guest.send("\x03\n");
        guest.wait_for("\x03: not understood", 1);
        match end {
            "TERM" => signal(file("pid").trim().parse().unwrap(), "-TERM"),
            word => guest.send(&format!("{word}\n")),
        }
        guest.wait();
        assert_eq!(file("code").trim(), code, "{end}");
        assert_eq!(file("before"), file("after"), "{end}");
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "no {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn connect(path: &Path) -> UnixStream {
    let mut client = None;
    wait_until("socket", || {
        client = UnixStream::connect(path).ok();
        client.is_some()
    });
    let client = client.unwrap();
    let timeout = Some(Duration::from_secs(60));
    client.set_read_timeout(timeout).unwrap();
    client
}

fn signal(pid: u32, name: &str) {
    let kill = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(kill.unwrap().success());
}

#[test]
fn signals_end_the_vmm_cleanly_whatever_the_guest_does() {
    // Halted for ever, or busy asking for input.
    for words in ["", "listen"] {
        for name in ["-TERM", "-INT"] {
            let mut guest = Probe::start(&["--cpus", "boot=2"], words);
            guest.wait_for(if words.is_empty() { "end" } else { "ready" }, 1);
            signal(guest.pid(), name);
            guest.wait().assert_success();
        }
    }
}

/// Those who start programs in the background, as nohup(1) and scripts do, make them ignore signals.
#[test]
fn signals_that_were_ignored_stay_so() {
    let vmm = format!("{:?}", Probe::command(&[], "listen"));
    let script = format!("trap '' INT; exec {vmm}");
    let mut guest = Probe::spawn(Command::new("sh").args(["-c", &script]));
    guest.wait_for("listen: ready", 1);
    signal(guest.pid(), "-INT");
    guest.send("inb=0x80\n");
    guest.wait_for("inb=0x80: ", 1);
    signal(guest.pid(), "-TERM");
    guest.wait().assert_success();
}

/// A signal may come at the moment of a reset: it must not go with the boot that is over.
#[test]
fn signals_end_a_guest_that_resets_again_and_again() {
    for round in 0..12 {
        let mut guest = Probe::start(&["--memory", "size=64M"], "reset");
        guest.wait_for("reset:", 1 + round % 3);
        signal(guest.pid(), "-TERM");
        guest.wait().assert_success();
    }
}

#[test]
fn vmm_ends_though_nobody_reads_its_output() {
    let words = "acpi ".repeat(60);
    let mut vmm = Probe::command(&[], &words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Until the pipe is full, and the vCPU waits.
    let pipe = vmm.stdout.take().unwrap();
    wait_until_blocked(vmm.id());
    signal(vmm.id(), "-TERM");
    wait_until("end", || vmm.try_wait().unwrap().is_some());
    assert_eq!(vmm.wait().unwrap().code(), Some(0));
    drop(pipe);
}

/// Waits until a thread of the process waits for room in a pipe.
fn wait_until_blocked(pid: u32) {
    let waits_in_pipe = || {
        fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .any(|task| {
                let channel = task.unwrap().path().join("syscall");
                // write(2) to descriptor 1 or a duplicate of it.
                fs::read_to_string(channel).is_ok_and(|text| text.starts_with("1 "))
            })
    };
    let mut times = 0;
    wait_until("vCPU that waits", || {
        times = if waits_in_pipe() { times + 1 } else { 0 };
        times == 50
    });
}

/// A word that the probe does not know must not pass for one that worked.
#[test]
fn unknown_words_are_said_to_be() {
    let report: Report = Probe::run(&[], "nonsense inb inb=1:2:3:4 inb=0x inb=0x80 poweroff");
    report.assert_success();
    let not_understood = report.output.matches(": not understood").count();
    assert_eq!(not_understood, 4);
}
