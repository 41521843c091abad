"""Exports of other annotation and chat tools."""
