//! Each key of `--memory` by its effect on the host.

use anyhow::{Context as _, Result, ensure};
use tests::{Hugepages, Mapping, Outcome, RunningVmm, mappings};

const SIZE: u64 = 256 << 20;

/// The mappings behind the guest's RAM, once its kernel runs, and the VMM to be ended.
fn ram_of_guest(options: &str) -> Result<(Vec<Mapping>, RunningVmm)> {
    let vmm = crate::early_guest()?
        .args(["--memory", &format!("size=256M{options}")])
        .spawn()?;
    vmm.wait_for_line("Linux version")?;
    let ram: Vec<Mapping> = mappings(vmm.pid())?
        .into_iter()
        .filter(Mapping::is_guest_ram)
        .collect();
    let total: u64 = ram.iter().map(|mapping| mapping.size).sum();
    assert_eq!(total, SIZE, "{ram:?}");
    Ok((ram, vmm))
}

fn end(vmm: RunningVmm) -> Result<Outcome> {
    vmm.signal("TERM")?;
    vmm.wait()?.success()
}

fn has(ram: &[Mapping], flag: &str) -> bool {
    ram.iter()
        .all(|mapping| mapping.flags.iter().any(|name| name == flag))
}

fn has_none(ram: &[Mapping], flag: &str) -> bool {
    ram.iter()
        .all(|mapping| mapping.flags.iter().all(|name| name != flag))
}

fn resident(ram: &[Mapping]) -> u64 {
    ram.iter()
        .map(|mapping| mapping.rss + mapping.hugetlb)
        .sum()
}

#[test]
fn plain_memory_is_private_and_not_touched_at_start() -> Result<()> {
    let (ram, vmm) = ram_of_guest("")?;
    ensure!(
        has_none(&ram, "sh") && has_none(&ram, "mg") && has_none(&ram, "ht"),
        "{ram:?}"
    );
    ensure!(has(&ram, "hg"), "thp is on unless turned off: {ram:?}");
    ensure!(resident(&ram) < SIZE * 3 / 4, "{ram:?}");
    end(vmm)?;
    Ok(())
}

#[test]
fn thp_off_keeps_huge_pages_away() -> Result<()> {
    let (ram, vmm) = ram_of_guest(",thp=off")?;
    ensure!(has(&ram, "nh") && has_none(&ram, "hg"), "{ram:?}");
    assert_eq!(ram.iter().map(|mapping| mapping.anon_huge).sum::<u64>(), 0);
    end(vmm)?;
    Ok(())
}

#[test]
fn shared_memory_is_a_shared_file() -> Result<()> {
    let (ram, vmm) = ram_of_guest(",shared=on")?;
    ensure!(has(&ram, "sh"), "{ram:?}");
    ensure!(
        ram.iter().all(|mapping| mapping.name.contains("memfd")),
        "{ram:?}"
    );
    end(vmm)?;
    Ok(())
}

#[test]
fn mergeable_memory_is_offered_to_ksm() -> Result<()> {
    let (ram, vmm) = ram_of_guest(",mergeable=on")?;
    ensure!(has(&ram, "mg"), "{ram:?}");
    end(vmm)?;
    Ok(())
}

#[test]
fn prefaulted_memory_is_all_there() -> Result<()> {
    let (ram, vmm) = ram_of_guest(",prefault=on")?;
    assert_eq!(resident(&ram), SIZE);
    end(vmm)?;
    Ok(())
}

/// Private and shared, and taken from the pool at once, so that it cannot run out later.
#[test]
fn huge_pages_come_from_the_pool() -> Result<()> {
    let pages = SIZE >> 21;
    let pool = Hugepages::reserve(pages)?;
    for options in [",hugepages=on,hugepage_size=2M", ",hugepages=on,shared=on"] {
        let (ram, vmm) = ram_of_guest(options)?;
        ensure!(has(&ram, "ht"), "{options}: {ram:?}");
        assert_eq!(has(&ram, "sh"), options.contains("shared"), "{ram:?}");
        let reserved =
            std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages")?;
        let reserved: u64 = reserved.trim().parse().context("resv_hugepages")?;
        let used = pages - pool.free()?;
        assert_eq!(
            used + reserved,
            pages,
            "{options}: not all of the pool is spoken for"
        );
        end(vmm)?;
    }
    // One page too few: refused, and nothing taken.
    drop(pool);
    let pool = Hugepages::reserve(pages - 1)?;
    let refused = crate::early_guest()?
        .args(["--memory", "size=256M,hugepages=on"])
        .run()?;
    assert_eq!(refused.code(), Some(1));
    ensure!(
        refused.stderr.contains("hugepages=on"),
        "{}",
        refused.stderr
    );
    assert_eq!(pool.free()?, pages - 1);
    Ok(())
}
