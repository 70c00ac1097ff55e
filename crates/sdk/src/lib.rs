//! The assembly: engine, upstreams and store wired into one client.

mod settings;

pub use settings::{
    LimitSettings, LimitsSettings, ModelSettings, Price, Protocol, Settings, TargetSettings,
    UpstreamSettings,
};
