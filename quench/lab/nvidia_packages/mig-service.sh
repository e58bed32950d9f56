#!/bin/bash
# SIMULATED: applies the selected configuration, which the unit's drop-in names.
: "${MIG_PARTED_CONFIG_FILE:=/etc/nvidia-mig-manager/config.yaml}"
: "${MIG_PARTED_HOOKS_FILE:=/etc/nvidia-mig-manager/hooks.yaml}"
: "${MIG_PARTED_SELECTED_CONFIG:=all-disabled}"
export MIG_PARTED_CONFIG_FILE MIG_PARTED_HOOKS_FILE MIG_PARTED_SELECTED_CONFIG
exec nvidia-mig-parted apply
