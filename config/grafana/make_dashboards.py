"""Make Grafana's dashboards: ``python config/grafana/make_dashboards.py`` (or ``make dashboards``).

The thresholds are those of config/prometheus/alerts.yml. Run it again after a change there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fleet_dashboard import fleet
from gateway_dashboard import gateway

HERE = Path(__file__).parent


def main() -> None:
    """Write the dashboards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "dashboards", help="folder for the JSON files")
    parser.add_argument(
        "--docs", default="docs/monitoring.md", help="address of that file at your place, for the links to runbooks"
    )
    arguments = parser.parse_args()
    for name, made in (("fleet", fleet(arguments.docs)), ("gateway", gateway(arguments.docs))):
        path = arguments.output / f"{name}.json"
        path.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
