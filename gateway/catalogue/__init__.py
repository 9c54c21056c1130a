"""The catalogue of the fleet: node classes, models and packs, merged from all backends, as each tenant sees it."""
