//! The list of models.

use serde::{Deserialize, Serialize};

/// One model of `GET /v1/models`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Its name, as requests give it.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Since when, in seconds since 1970.
    pub created: u64,
    /// Whose it is.
    pub owned_by: String,
}

/// The body of `GET /v1/models`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// The models.
    pub data: Vec<Model>,
}
