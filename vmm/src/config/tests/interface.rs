//! The tables against the types and against the interface that they are to offer.

use std::cell::Cell;
use std::collections::BTreeSet;

use serde::de::value::Error as FieldsError;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};

use super::*;

/// The names of a struct's fields, as serde has them.
fn fields<T: DeserializeOwned>() -> BTreeSet<&'static str> {
    struct Probe<'a>(&'a Cell<&'static [&'static str]>);

    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = FieldsError;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, FieldsError> {
            Err(FieldsError::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, FieldsError> {
            self.0.set(fields);
            Err(FieldsError::custom("fields taken"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
            ignored_any
        }
    }

    let fields = Cell::new(&[][..]);
    assert!(T::deserialize(Probe(&fields)).is_err());
    fields.get().iter().copied().collect()
}

/// Checks that a table spells exactly the fields of a type, and that the fields and what is not
/// there yet are together what the REST interface has, plus what we add.
fn spells<T: DeserializeOwned>(name: &str, rest: &[&'static str], ours: &[&'static str]) {
    let spelling = spelling_of(name).expect("a table");
    let bare = spelling.bare.iter().map(|bare| bare.field);
    let member = |key: &spelling::Key| key.field.split('.').next().unwrap_or_default();
    let keys = spelling.keys.iter().map(member);
    let spelt: BTreeSet<&str> = match name {
        "VmConfig" => SECTIONS
            .iter()
            .filter_map(|section| match section.place {
                Place::Field(field) | Place::List(field) => Some(field),
                Place::ListIn(..) => None,
            })
            .chain(["payload"])
            .collect(),
        // Zones have an option of their own.
        "MemoryConfig" => keys.chain(["zones"]).collect(),
        _ => bare.chain(keys).collect(),
    };
    assert_eq!(spelt, fields::<T>(), "{name}");
    let not_yet: BTreeSet<&str> = spelling
        .not_yet
        .iter()
        .filter_map(|key| key.field)
        .collect();
    assert!(not_yet.is_disjoint(&spelt), "{name}");
    let offered: BTreeSet<&str> = not_yet.union(&spelt).copied().collect();
    let expected: BTreeSet<&str> = rest.iter().chain(ours).copied().collect();
    assert_eq!(offered, expected, "{name}");
}

#[test]
fn every_field_of_the_rest_interface_is_there_or_not_yet() {
    spells::<VmConfig>(
        "VmConfig",
        &[
            "cpus",
            "memory",
            "payload",
            "rate_limit_groups",
            "disks",
            "net",
            "rng",
            "balloon",
            "fs",
            "generic_vhost_user",
            "pmem",
            "serial",
            "console",
            "debug_console",
            "devices",
            "user_devices",
            "vdpa",
            "vsock",
            "numa",
            "iommu",
            "watchdog",
            "rtc",
            "pvpanic",
            "pci_segments",
            "platform",
            "tpm",
            "landlock_enable",
            "landlock_rules",
        ],
        &[],
    );
    spells::<PayloadConfig>(
        "PayloadConfig",
        &[
            "firmware",
            "kernel",
            "cmdline",
            "initramfs",
            "igvm",
            "host_data",
        ],
        &[],
    );
    spells::<CpusConfig>(
        "CpusConfig",
        &[
            "boot_vcpus",
            "max_vcpus",
            "topology",
            "kvm_hyperv",
            "max_phys_bits",
            "nested",
            "affinity",
            "features",
            "core_scheduling",
        ],
        &[],
    );
    spells::<MemoryConfig>(
        "MemoryConfig",
        &[
            "size",
            "hotplug_size",
            "hotplugged_size",
            "mergeable",
            "hotplug_method",
            "shared",
            "hugepages",
            "hugepage_size",
            "prefault",
            "reserve",
            "thp",
            "zones",
        ],
        &[],
    );
    spells::<SerialConfig>("SerialConfig", &["file", "socket", "mode"], &[]);
    spells::<ConsoleConfig>(
        "ConsoleConfig",
        &[
            "file",
            "socket",
            "mode",
            "iommu",
            "id",
            "pci_segment",
            "pci_device_id",
        ],
        &[],
    );
    spells::<DebugConsoleConfig>("DebugConsoleConfig", &["file", "mode", "iobase"], &[]);
    spells::<PlatformConfig>(
        "PlatformConfig",
        &[
            "num_pci_segments",
            "iommu_segments",
            "iommu_address_width_bits",
            "system_serial_number",
            "serial_number",
            "system_uuid",
            "uuid",
            "oem_strings",
            "system_manufacturer",
            "system_product_name",
            "system_version",
            "system_family",
            "system_sku_number",
            "chassis_asset_tag",
            "tdx",
            "sev_snp",
            "iommufd",
            "vfio_p2p_dma",
        ],
        &["acpi"],
    );
    spells::<MemoryZoneConfig>(
        "MemoryZoneConfig",
        &[
            "id",
            "size",
            "file",
            "mergeable",
            "shared",
            "hugepages",
            "hugepage_size",
            "host_numa_node",
            "hotplug_size",
            "hotplugged_size",
            "prefault",
            "reserve",
        ],
        &[],
    );
    spells::<NumaConfig>(
        "NumaConfig",
        &[
            "guest_numa_id",
            "cpus",
            "distances",
            "memory_zones",
            "pci_segments",
            "device_id",
        ],
        &["hmat"],
    );
    let ours = ["guest_numa_ids", "generic_initiator"];
    spells::<DeviceConfig>(
        "DeviceConfig",
        &[
            "path",
            "iommu",
            "pci_segment",
            "pci_device_id",
            "id",
            "x_nv_gpudirect_clique",
            "x_exclude_mmap_bars",
        ],
        &[&ours[..], &["x_allow_noncacheable"]].concat(),
    );
    spells::<UserDeviceConfig>(
        "UserDeviceConfig",
        &["socket", "id", "pci_segment", "pci_device_id"],
        &ours,
    );
    spells::<DiskConfig>(
        "DiskConfig",
        &[
            "path",
            "readonly",
            "direct",
            "iommu",
            "num_queues",
            "queue_size",
            "vhost_user",
            "vhost_socket",
            "rate_limiter_config",
            "pci_segment",
            "pci_device_id",
            "id",
            "serial",
            "rate_limit_group",
            "queue_affinity",
            "backing_files",
            "sparse",
            "image_type",
            "lock_granularity",
        ],
        &[],
    );
    spells::<NetConfig>(
        "NetConfig",
        &[
            "tap",
            "ip",
            "mask",
            "mac",
            "host_mac",
            "mtu",
            "iommu",
            "num_queues",
            "queue_size",
            "vhost_user",
            "vhost_socket",
            "vhost_mode",
            "id",
            "pci_segment",
            "pci_device_id",
            "rate_limiter_config",
            "offload_tso",
            "offload_ufo",
            "offload_csum",
        ],
        &["fds"],
    );
    spells::<RateLimitGroupConfig>("RateLimitGroupConfig", &["id", "rate_limiter_config"], &[]);
    spells::<RngConfig>(
        "RngConfig",
        &["id", "pci_segment", "pci_device_id", "iommu", "src"],
        &[],
    );
    spells::<VsockConfig>(
        "VsockConfig",
        &[
            "cid",
            "socket",
            "iommu",
            "id",
            "pci_segment",
            "pci_device_id",
        ],
        &[],
    );
    spells::<PciSegmentConfig>(
        "PciSegmentConfig",
        &[
            "pci_segment",
            "mmio32_aperture_weight",
            "mmio64_aperture_weight",
        ],
        &[],
    );
    assert_eq!(
        fields::<NumaDistance>(),
        BTreeSet::from(["destination", "distance"])
    );
    assert_eq!(
        fields::<CpuTopology>(),
        BTreeSet::from([
            "threads_per_core",
            "cores_per_die",
            "dies_per_package",
            "packages"
        ])
    );
    assert_eq!(
        fields::<VirtQueueAffinity>(),
        BTreeSet::from(["queue_index", "host_cpus"])
    );
    assert_eq!(
        fields::<CpuAffinity>(),
        BTreeSet::from(["vcpu", "host_cpus"])
    );
}

/// Keys for the members of groups lead to members that there are, and to all of them.
#[test]
fn groups_are_spelt_whole() {
    let limits = "rate_limiter_config";
    assert_eq!(
        fields::<RateLimiterConfig>(),
        BTreeSet::from(["bandwidth", "ops"])
    );
    let members = ["size", "one_time_burst", "refill_time"];
    assert_eq!(fields::<TokenBucket>(), BTreeSet::from(members));
    let expected: BTreeSet<String> = ["bandwidth", "ops"]
        .iter()
        .flat_map(|bucket| members.map(|member| format!("{limits}.{bucket}.{member}")))
        .collect();
    let mut with_groups = 0;
    for section in &SECTIONS {
        let keys = section.spelling.keys.iter();
        let paths = keys.filter(|key| key.group().is_some());
        let spelt: BTreeSet<String> = paths.map(|key| key.field.to_owned()).collect();
        if !spelt.is_empty() {
            assert_eq!(spelt, expected, "--{}", section.option);
            with_groups += 1;
        }
    }
    assert_eq!(with_groups, 3);
}
