//! How the permits are made: from the configuration, and from what an earlier broker left.

use std::collections::{BTreeMap, BTreeSet};

use super::meter::{Limits, Meter};
use super::{Held, Memo, Permits, Server, Slot, slot_of};
use crate::config::{Breaker, Config, Tool};
use crate::protocol::calls::Grant;

/// The gate of a model that the configuration names.
pub(crate) fn model_gate(name: &str) -> String {
    format!("m:{name}")
}

/// The gate of a provider that a task names itself.
pub(crate) fn provider_gate(name: &str) -> String {
    format!("p:{name}")
}

/// The gate of a tool.
pub(crate) fn tool_gate(name: &str) -> String {
    format!("t:{name}")
}

/// The meter of a tool. No provider can have this name.
fn tool_meter(name: &str) -> String {
    format!("tool {name}")
}

/// A service of a tool.
fn service_server(tool: &str, service: &str) -> String {
    format!("{tool}/{service}")
}

impl Permits {
    /// Under this configuration. What is counted, broken or closed stays so.
    pub(crate) fn configure(&mut self, config: &Config) {
        let (mut servers, mut meters) = (BTreeMap::new(), BTreeMap::new());
        let mut gates = BTreeMap::new();
        for (name, provider) in &config.providers {
            let limits = Limits {
                max_concurrent: provider.max_concurrent,
                rpm: provider.rpm,
                tpm: provider.tpm,
            };
            meters.insert(name.clone(), self.meter(name, limits));
            servers.insert(name.clone(), self.server(name, name, provider.breaker));
            gates.insert(provider_gate(name), vec![name.clone()]);
        }
        for (name, model) in &config.models {
            let mut chain: Vec<String> = Vec::new();
            for entry in &model.chain {
                let provider = entry.split('/').next().unwrap_or_default();
                // Two models of one provider are one server.
                if servers.contains_key(provider) && !chain.iter().any(|known| known == provider) {
                    chain.push(provider.to_owned());
                }
            }
            gates.insert(model_gate(name), chain);
        }
        let mut fallbacks = BTreeSet::new();
        for (name, tool) in &config.tools {
            let Tool { max_concurrent, rpm, .. } = *tool;
            let meter = tool_meter(name);
            meters.insert(
                meter.clone(),
                self.meter(&meter, Limits { max_concurrent, rpm, tpm: None }),
            );
            let chain: Vec<_> =
                tool.chain.iter().map(|service| service_server(name, service)).collect();
            for server in &chain {
                servers.insert(server.clone(), self.server(server, &meter, tool.breaker));
            }
            if tool.default.is_some() {
                fallbacks.insert(tool_gate(name));
            }
            gates.insert(tool_gate(name), chain);
        }
        (self.servers, self.meters) = (servers, meters);
        (self.gates, self.fallbacks) = (gates, fallbacks);
    }

    fn meter(&mut self, name: &str, limits: Limits) -> Meter {
        let mut meter = self.meters.remove(name).unwrap_or_default();
        meter.limits = limits;
        meter
    }

    fn server(&mut self, name: &str, meter: &str, breaker: Breaker) -> Server {
        let mut server = self.servers.remove(name).unwrap_or_default();
        server.breaker.set(breaker);
        meter.clone_into(&mut server.meter);
        server
    }

    /// Takes in what an earlier broker wanted remembered.
    pub(crate) fn restore(&mut self, memos: Vec<Memo>) {
        for memo in memos {
            match memo {
                Memo::Spent { meter, slot, requests, tokens } => {
                    if let Some(meter) = self.meters.get_mut(&meter) {
                        let [requests, tokens] =
                            [requests, tokens].map(|n| n.max(0).unsigned_abs());
                        meter.restore(Slot { at: slot, requests, tokens });
                    }
                }
                Memo::Server { name, breaker, closed_until_ms } => {
                    if let Some(server) = self.servers.get_mut(&name) {
                        server.restore(breaker, closed_until_ms);
                    }
                }
            }
        }
    }

    /// Grants nothing until this worker has said what it holds, or is dead.
    pub(crate) fn await_worker(&mut self, serial: u64) {
        self.awaited.insert(serial);
    }

    /// This worker has said what it holds, or never will.
    pub(crate) fn heard(&mut self, serial: u64) {
        if self.awaited.remove(&serial) {
            self.forget_probes();
        }
    }

    /// Whoever may hold a breaker's probe has said so, once nobody is awaited: others are lost.
    pub(crate) fn forget_probes(&mut self) {
        if self.awaited.is_empty() {
            let held = &self.held;
            for server in self.servers.values_mut() {
                server.breaker.forget_probe(|permit| held.contains_key(&permit));
            }
        }
    }

    /// A permit that an earlier broker granted; one that is known stays as it is.
    pub(crate) fn hold(&mut self, grant: &Grant) {
        if self.held.contains_key(&grant.permit) {
            return;
        }
        let (server, slot) = (grant.server.clone(), Some(slot_of(grant.permit)));
        if let Some(known) = self.servers.get(&server)
            && let Some(meter) = self.meters.get_mut(&known.meter)
        {
            meter.hold();
        }
        self.held.insert(grant.permit, Held { server, tokens: grant.tokens, slot });
    }
}
