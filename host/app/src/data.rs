//! The store's plain data types that use cases answer with, so that the HTTP layer names the store nowhere.

pub use bulkhead_store::StoreError;
pub use bulkhead_store::account::User;
pub use bulkhead_store::api_key::ApiKey;
pub use bulkhead_store::audit::AuditEntry;
pub use bulkhead_store::breaker::BreakerState;
pub use bulkhead_store::call::{Call, CallSummary};
pub use bulkhead_store::dead_letter::task::{DeadLetterAction, DeadLetterTask, TaskState};
pub use bulkhead_store::dead_letter::{COUNT_MAX as FAULT_COUNT_MAX, DeadLetter, DeadLetterFilter};
pub use bulkhead_store::event::Event;
pub use bulkhead_store::installation::{Installation, InstallationState};
pub use bulkhead_store::invitation::Invitation;
pub use bulkhead_store::job::Job;
pub use bulkhead_store::key::StoredKey;
pub use bulkhead_store::key::rotation::KeyRotation;
pub use bulkhead_store::member::{Member, Membership};
pub use bulkhead_store::org::Org;
pub use bulkhead_store::page::{PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX, Page, PageRequest};
pub use bulkhead_store::plugin::Plugin;
pub use bulkhead_store::retention::{History, Pass};
pub use bulkhead_store::role::Role;
pub use bulkhead_store::role::assignment::StoredAssignment;
pub use bulkhead_store::role::request::RoleRequest;
pub use bulkhead_store::run::{Run, RunEvent, RunSummary, Step, StepSizes};
pub use bulkhead_store::session::{Device, Session};
pub use bulkhead_store::team::{Team, TeamMember};
pub use bulkhead_store::throttle::SignInAttempt;
pub use bulkhead_store::workflow::{Workflow, WorkflowVersion, WorkflowVersionSummary};
