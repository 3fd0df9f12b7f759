# Copyright: (c) 2026, The metalray contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup ``awx_survey``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: awx_survey
short_description: An AWX survey that asks for variables of this collection's roles
version_added: 0.1.0
author: The metalray contributors (@metalray)
description:
  - Makes the C(survey_spec) of a job template or a workflow from the argument specs of the roles, so that the survey has their
    types, choices and descriptions, and names their defaults.
  - No question has a default of AWX's and none must be answered. AWX passes answers and defaults on as extra variables, which
    win over the inventory. What stays empty is left to the inventory, and then to the role.
  - Booleans are asked for as the choice of V(true) or V(false), and arrive as these words.
options:
  _terms:
    description:
      - Variables to ask for, in this order.
      - Text, path, number and boolean variables can be asked for, and lists with choices. Others have no question in AWX.
    type: list
    elements: str
    required: true
  name:
    description: Name of the survey.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: A job template that asks for the job
  awx.awx.job_template:
    name: Training
    organization: Research
    project: Cluster
    inventory: Cluster
    playbook: site.yml
    job_tags: training
    survey_enabled: true
    survey_spec: "{{ lookup('metalray.cluster.awx_survey', 'training_job', 'training_command', name='Training') }}"
"""

RETURN = r"""
_raw:
  description: The survey as AWX takes it, with C(name), C(description) and C(spec). Empty where no variable was named.
  type: list
  elements: dict
  sample:
    - name: Training
      description: What stays empty is as the inventory says.
      spec:
        - question_name: Train again although the job has succeeded
          question_description: "[training_force, bool, false where the inventory says nothing]"
          variable: training_force
          required: false
          type: multiplechoice
          choices: ["true", "false"]
"""

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from ..module_utils._awx_survey import NoQuestion, survey
from ..plugin_utils._settings import read_specs


class LookupModule(LookupBase):
    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        named = [variable for term in terms for variable in (term if isinstance(term, list) else [term])]
        try:
            return [survey(self.get_option("name"), named, read_specs())]
        except NoQuestion as error:
            raise AnsibleError(str(error)) from error
