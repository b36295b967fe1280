//! Limits of what devices move, and groups that share them: made once, so that a reboot fills no bucket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use devices::virtio::rate_limiter::{Bucket, Limits};

use crate::config::{RateLimitGroupConfig, RateLimiterConfig, TokenBucket};

/// Groups of devices, by their names.
pub struct Groups(BTreeMap<String, Arc<Limits>>);

impl Groups {
    /// Groups with full buckets.
    pub fn new(groups: &[RateLimitGroupConfig]) -> Self {
        let groups = groups.iter().map(|group| {
            let RateLimitGroupConfig {
                id,
                rate_limiter_config,
            } = group;
            (id.clone(), limits(rate_limiter_config))
        });
        Self(groups.collect())
    }

    /// The limits of a device: those of its group, or of its own; none if it has neither.
    pub fn limits_of(
        &self,
        group: Option<&str>,
        own: Option<&RateLimiterConfig>,
    ) -> Option<Arc<Limits>> {
        // Validation refuses both at once, and a group that is not there.
        match group {
            Some(group) => self.0.get(group).cloned(),
            None => own.map(limits),
        }
    }
}

/// Limits with full buckets.
fn limits(config: &RateLimiterConfig) -> Arc<Limits> {
    let RateLimiterConfig { bandwidth, ops } = *config;
    Arc::new(Limits::new(bandwidth.map(bucket), ops.map(bucket)))
}

fn bucket(config: TokenBucket) -> Bucket {
    let TokenBucket {
        size,
        one_time_burst,
        refill_time,
    } = config;
    Bucket {
        size,
        one_time_burst: one_time_burst.unwrap_or(0),
        refill: Duration::from_millis(refill_time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(size: u64, one_time_burst: Option<u64>, refill_time: u64) -> RateLimiterConfig {
        let bucket = TokenBucket {
            size,
            one_time_burst,
            refill_time,
        };
        RateLimiterConfig {
            bandwidth: None,
            ops: Some(bucket),
        }
    }

    #[test]
    fn limits_are_those_of_the_group_or_its_own() {
        let group = |id: &str| RateLimitGroupConfig {
            id: id.to_owned(),
            rate_limiter_config: config(1, None, 1),
        };
        let groups = Groups::new(&[group("a"), group("b")]);
        let of = |group| groups.limits_of(Some(group), None).unwrap();
        assert!(Arc::ptr_eq(&of("a"), &of("a")));
        assert!(!Arc::ptr_eq(&of("a"), &of("b")));
        let own = config(1, None, 1);
        let mine = groups.limits_of(None, Some(&own)).unwrap();
        assert!(!mine.is_unlimited());
        let yours = groups.limits_of(None, Some(&own)).unwrap();
        assert!(!Arc::ptr_eq(&mine, &yours));
        assert!(groups.limits_of(None, None).is_none());
    }

    #[test]
    fn times_are_milliseconds_and_there_need_not_be_a_burst() {
        let config = config(2, None, 3).ops.unwrap();
        let expected = Bucket {
            size: 2,
            one_time_burst: 0,
            refill: Duration::from_millis(3),
        };
        assert_eq!(bucket(config), expected);
        let with_burst = TokenBucket {
            one_time_burst: Some(4),
            ..config
        };
        let one_time_burst = 4;
        assert_eq!(
            bucket(with_burst),
            Bucket {
                one_time_burst,
                ..expected
            }
        );
    }
}
