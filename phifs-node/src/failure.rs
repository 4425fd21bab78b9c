//! Why a command failed, in the form in which it travels: from the daemon over the control socket, from a starting
//! daemon to the `phifs up` that waits for it, and to the terminal with an exit code.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What failed, on what, and what to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

/// Decides the exit code; scripts rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Failed,
    Usage,
    NotRunning,
    InUse,
    Damaged,
    /// The disk is full.
    NoSpace,
}

impl Kind {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::NoSpace => 1,
            Self::Usage => 2,
            Self::NotRunning => 3,
            Self::InUse => 4,
            Self::Damaged => 5,
        }
    }
}

impl Failure {
    pub fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), hint: None }
    }

    /// A failure that nothing more is known about.
    pub fn plain(message: impl fmt::Display) -> Self {
        Self::new(Kind::Failed, message)
    }

    pub fn is_full(&self) -> bool {
        self.kind == Kind::NoSpace
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// `error: ..`, then what to try.
    pub fn text(&self) -> String {
        let hint = self.hint.as_ref().map(|hint| format!("\n  try: {hint}")).unwrap_or_default();
        format!("error: {}{hint}", self.message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<phifs_core::volume::VolumeError> for Failure {
    fn from(error: phifs_core::volume::VolumeError) -> Self {
        Self::new(if error.is_full() { Kind::NoSpace } else { Kind::Failed }, error)
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::new(Kind::Usage, &error).hint(error.hint())
    }
}

impl From<crate::node_key::NodeKeyError> for Failure {
    fn from(error: crate::node_key::NodeKeyError) -> Self {
        Self::plain(&error).hint(error.hint())
    }
}

impl From<crate::store_dir::StoreDirError> for Failure {
    fn from(error: crate::store_dir::StoreDirError) -> Self {
        use crate::store_dir::StoreDirError as E;
        let kind = match error {
            E::InUse { .. } => Kind::InUse,
            E::Io { .. } | E::Absent(_) | E::NotAStore { .. } | E::NotOwner { .. } => Kind::Failed,
        };
        Self::new(kind, &error).hint(error.hint())
    }
}
