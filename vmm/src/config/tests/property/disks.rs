//! Disks and their limits.

use super::*;

fn any_bucket() -> impl Strategy<Value = TokenBucket> {
    any::<(u64, Option<u64>, u64)>().prop_map(|(size, one_time_burst, refill_time)| TokenBucket {
        size,
        one_time_burst,
        refill_time,
    })
}

pub fn any_limits() -> impl Strategy<Value = RateLimiterConfig> {
    let bucket = || prop::option::of(any_bucket());
    (bucket(), bucket()).prop_map(|(bandwidth, ops)| RateLimiterConfig { bandwidth, ops })
}

prop_compose! {
    pub fn any_group()(
        id in any::<String>(),
        rate_limiter_config in any_limits(),
    ) -> RateLimitGroupConfig {
        RateLimitGroupConfig { id, rate_limiter_config }
    }
}

fn any_image() -> impl Strategy<Value = ImageType> {
    use ImageType::{FixedVhd, Qcow2, Raw, Unknown, Vhdx};
    prop::sample::select(vec![FixedVhd, Qcow2, Raw, Vhdx, Unknown])
}

fn any_affinity() -> impl Strategy<Value = VirtQueueAffinity> {
    let host_cpus = prop::collection::vec(any::<u32>(), 0..4);
    (any::<u16>(), host_cpus).prop_map(|(queue_index, host_cpus)| VirtQueueAffinity {
        queue_index,
        host_cpus,
    })
}

prop_compose! {
    pub fn any_disk()(
        path in any::<String>(),
        [readonly, direct, backing_files, sparse, full] in any::<[bool; 5]>(),
        (num_queues, queue_size) in any::<(u16, u16)>(),
        rate_limiter_config in prop::option::of(any_limits()),
        [rate_limit_group, serial] in any::<[Option<String>; 2]>(),
        id in any_id(),
        (pci_segment, pci_device_id) in any::<(u16, Option<u8>)>(),
        queue_affinity in prop::collection::vec(any_affinity(), 0..3),
        image_type in any_image(),
    ) -> DiskConfig {
        let lock_granularity = match full {
            true => LockGranularity::Full,
            false => LockGranularity::ByteRange,
        };
        DiskConfig {
            path: path.into(), readonly, direct, num_queues, queue_size, rate_limiter_config,
            rate_limit_group, id, serial, pci_segment, pci_device_id, queue_affinity, backing_files,
            sparse, image_type, lock_granularity,
        }
    }
}

/// Appends the keys of limits. What there is none of, the command line cannot say.
pub fn push_limits(text: &mut String, limits: RateLimiterConfig) {
    let RateLimiterConfig { bandwidth, ops } = limits;
    for (prefix, bucket) in [("bw", bandwidth), ("ops", ops)] {
        let Some(TokenBucket {
            size,
            one_time_burst,
            refill_time,
        }) = bucket
        else {
            continue;
        };
        text.push_str(&format!(
            ",{prefix}_size={size},{prefix}_refill_time={refill_time}"
        ));
        if let Some(burst) = one_time_burst {
            text.push_str(&format!(",{prefix}_one_time_burst={burst}"));
        }
    }
}

proptest! {
    #[test]
    fn disks_survive_the_command_line(mut config in any_disk()) {
        // Limits without a bucket, which no key makes.
        config.rate_limiter_config = config
            .rate_limiter_config
            .filter(|limits| *limits != RateLimiterConfig::default());
        let DiskConfig {
            path, readonly, direct, num_queues, queue_size, rate_limiter_config, rate_limit_group,
            id, serial, pci_segment, pci_device_id, queue_affinity, backing_files, sparse,
            image_type, lock_granularity,
        } = &config;
        let affinity: Vec<String> = queue_affinity
            .iter()
            .map(|VirtQueueAffinity { queue_index, host_cpus }| {
                format!("{queue_index}@{host_cpus:?}").replace(' ', "")
            })
            .collect();
        let mut text = format!(
            "path={},readonly={},direct={},num_queues={num_queues},queue_size={queue_size},\
             queue_affinity=[{}],backing_files={},sparse={},iommu=off,vhost_user=off",
            quoted(path.to_str().unwrap()), switch(*readonly), switch(*direct), affinity.join(","),
            switch(*backing_files), switch(*sparse),
        );
        push_place(&mut text, id, *pci_segment, *pci_device_id);
        push_limits(&mut text, rate_limiter_config.unwrap_or_default());
        for (key, value) in [("rate_limit_group", rate_limit_group), ("serial", serial)] {
            if let Some(value) = value {
                text.push_str(&format!(",{key}={}", quoted(value)));
            }
        }
        if *image_type != ImageType::Unknown {
            text.push_str(&format!(",image_type={image_type}"));
        }
        if *lock_granularity == LockGranularity::Full {
            text.push_str(",lock_granularity=full");
        }
        prop_assert_eq!(option("disk", &text), Ok(config));
    }

    #[test]
    fn groups_survive_the_command_line(config in any_group()) {
        let RateLimitGroupConfig { id, rate_limiter_config } = &config;
        let mut text = format!("id={}", quoted(id));
        push_limits(&mut text, *rate_limiter_config);
        prop_assert_eq!(option("rate-limit-group", &text), Ok(config));
    }
}
