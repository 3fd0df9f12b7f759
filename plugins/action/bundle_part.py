# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``bundle_part``: asks the node first, and sends the part only where it is not there."""

from __future__ import annotations

import tempfile
from typing import Any

from ansible import constants as C
from ansible.plugins.action import ActionBase

from ..module_utils._bundle import BundleError, extract_part, read_manifest


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_diff = False
    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = self._task.args
        try:
            files = read_manifest(arguments["bundle"]).part(arguments["part"])
        except KeyError as error:
            return {"failed": True, "msg": f"bundle_part needs the option {error}"}
        except BundleError as error:
            return {"failed": True, "msg": f"cluster_bundle is '{arguments['bundle']}', and {error}"}
        arguments = {**arguments, "files": files}
        result = self._unpack(arguments, task_vars)
        if result.get("failed") or result.get("present") or self._task.check_mode:
            return result
        if not files:
            return {"failed": True, "msg": f"{arguments['bundle']} holds nothing in its part '{arguments['part']}'"}
        self._make_tmp_path()
        try:
            place = self._connection._shell.join_path(self._connection._shell.tmpdir, "part.tar")
            with tempfile.NamedTemporaryFile(dir=C.DEFAULT_LOCAL_TMP, suffix=".tar") as local:
                extract_part(arguments["bundle"], arguments["part"], local)
                local.flush()
                self._transfer_file(local.name, place)
            self._fixup_perms2((self._connection._shell.tmpdir, place))
            return self._unpack({**arguments, "archive": place}, task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _unpack(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        return self._execute_module(
            module_name="metalray.cluster.bundle_part", module_args=arguments, task_vars=task_vars
        )
