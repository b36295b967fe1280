//! How much a device may move: token buckets, and groups of devices that share them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::schema::GroupName;
use super::spelling::{Fallback, Key, Spelling, Value};
use super::tree::MAX_PROBLEMS;

// These keys are the same for all that has a limiter.
pub(super) const BW_SIZE: Key = Key::new(
    "bw_size",
    "rate_limiter_config.bandwidth.size",
    Value::Size,
    "bytes that may be moved in bw_refill_time; 0 for any number",
)
.or(Fallback::RequiredInGroup);
pub(super) const BW_ONE_TIME_BURST: Key = Key::new(
    "bw_one_time_burst",
    "rate_limiter_config.bandwidth.one_time_burst",
    Value::Size,
    "bytes that may be moved beyond that, once",
)
.or(Fallback::Absent("none"));
pub(super) const BW_REFILL_TIME: Key = Key::new(
    "bw_refill_time",
    "rate_limiter_config.bandwidth.refill_time",
    Value::Typed("<ms>"),
    "milliseconds in which bw_size bytes may be moved; 0 for no limit",
)
.or(Fallback::RequiredInGroup);
pub(super) const OPS_SIZE: Key = Key::new(
    "ops_size",
    "rate_limiter_config.ops.size",
    Value::Typed("<count>"),
    "requests that are carried out in ops_refill_time; 0 for any number",
)
.or(Fallback::RequiredInGroup);
pub(super) const OPS_ONE_TIME_BURST: Key = Key::new(
    "ops_one_time_burst",
    "rate_limiter_config.ops.one_time_burst",
    Value::Typed("<count>"),
    "requests that are carried out beyond that, once",
)
.or(Fallback::Absent("none"));
pub(super) const OPS_REFILL_TIME: Key = Key::new(
    "ops_refill_time",
    "rate_limiter_config.ops.refill_time",
    Value::Typed("<ms>"),
    "milliseconds in which ops_size requests are carried out; 0 for no limit",
)
.or(Fallback::RequiredInGroup);

/// How `--rate-limit-group` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "RateLimitGroupConfig",
    about: "Limits that several disks share",
    bare: None,
    keys: &[
        Key::new(
            "id",
            "id",
            Value::Typed("<name>"),
            "its name, for rate_limit_group of disks",
        )
        .or(Fallback::Required),
        BW_SIZE,
        BW_ONE_TIME_BURST,
        BW_REFILL_TIME,
        OPS_SIZE,
        OPS_ONE_TIME_BURST,
        OPS_REFILL_TIME,
    ],
    not_yet: &[],
};

/// A token bucket: it is full at first, what is done takes tokens out, and it fills evenly. What
/// takes more than it holds is done when it is full, and leaves a debt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens that it holds: bytes or requests. 0 is no limit.
    pub size: u64,
    /// Tokens that there are beyond that at first, and that do not come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket fills. 0 is no limit.
    pub refill_time: u64,
}

/// How much may be moved, in both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// Limits that several disks share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitGroupConfig {
    /// Its name, which `rate_limit_group` of disks gives.
    #[schema(value_type = GroupName)]
    pub id: String,
    /// The limits.
    // Without any of its keys an option has none of it, and validation tells both spellings what is
    // missing.
    #[serde(default)]
    #[schema(required = true)]
    pub rate_limiter_config: RateLimiterConfig,
}

/// The longest name of a group, in characters.
const MAX_ID: usize = 256;

/// Adds what is wrong with groups to `problems`.
pub(super) fn validate(groups: &[RateLimitGroupConfig], problems: &mut Vec<Problem>) {
    let mut names = BTreeSet::new();
    for group in groups {
        if problems.len() >= MAX_PROBLEMS {
            return;
        }
        let RateLimitGroupConfig {
            id,
            rate_limiter_config: RateLimiterConfig { bandwidth, ops },
        } = group;
        let option = format!("--rate-limit-group id={id}");
        let length = id.chars().count();
        let reason = if id.is_empty() {
            "must not be empty".to_owned()
        } else if length > MAX_ID {
            format!("has {length} characters; at most {MAX_ID} are allowed")
        } else if id.contains(char::is_control) {
            "must not contain control characters".to_owned()
        } else if !names.insert(id.as_str()) {
            "another group has this id".to_owned()
        } else if bandwidth.is_none() && ops.is_none() {
            "limits nothing; give bw_size and bw_refill_time, or ops_size and ops_refill_time"
                .to_owned()
        } else {
            continue;
        };
        problems.push(Problem::invalid(option, reason));
    }
}
