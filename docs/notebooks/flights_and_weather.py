"""Delays at New York's airports, asked of the served views: `uv run marimo edit docs/notebooks/flights_and_weather.py`.

A marimo notebook is a Python module: its cells run in the order of what they need of each other, and `app.run()` runs
all of them. It needs no server, only the lake; MILLRACE_HOME says where that is.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Flights and weather")


@app.cell
def _():
    import altair as alt
    import marimo as mo

    from spark.serving.ask import ask

    return alt, ask, mo


@app.cell
def _(mo):
    mo.md("""
    # Flights and weather

    What delays look like at Newark, JFK and LaGuardia, and whether the weather explains them. Every number comes from
    the served views by `ask`, which takes SQL and gives an Arrow table; times are UTC. Each question sees one
    publication, whatever is published meanwhile.

    ## What is final, and what is not?

    Windows before the horizon are the batch layer's, exact and final. Later ones are the speed layer's: every event is
    in them within seconds, but repeated events may count twice. A window is withheld when a run refused to publish its
    hour.
    """)
    return


@app.cell
def _(ask, mo):
    standing = ask("""
        select case when final then 'final' when withheld then 'withheld' else 'open' end as state, source,
            count(*) as windows, min(window_start) as first, max(window_end) as until, sum(scheduled)::bigint as flights
        from departures_by_origin_1h group by all order by first
    """).to_pandas()
    mo.ui.table(standing, selection=None)
    return (standing,)


@app.cell
def _(ask, mo):
    explained = ask("""
        select stream, cause, count(*) as differences, max(abs(difference)) as greatest from ledger
        group by all order by all
    """).to_pandas()
    mo.vstack(
        [
            mo.md("Where the speed layer had served something else than what became final, the ledger says why:"),
            mo.ui.table(explained, selection=None)
            if len(explained)
            else mo.md("*nowhere: every number was right at once.*"),
        ]
    )
    return (explained,)


@app.cell
def _(mo):
    mo.md("""
    ## When are flights late?

    By the hour of the scheduled departure on New York's clocks. The mean of several windows is weighted by the flights
    that departed in each; quantiles of windows cannot be averaged, so of the 95th percentiles the greatest is shown.
    """)
    return


@app.cell
def _(mo):
    shown = mo.ui.radio({"mean": "mean_delay", "worst 95th percentile": "worst_p95"}, value="mean", inline=True)
    mo.hstack([shown])
    return (shown,)


@app.cell
def _(ask):
    delays = ask("""
        select origin, hour(timezone('America/New_York', window_start)) as hour, sum(departed)::bigint as departed,
            sum(mean_dep_delay * departed) / sum(departed) as mean_delay, max(p95_dep_delay) as worst_p95
        from departures_by_origin_1h where final and departed > 0 group by all order by all
    """).to_pandas()
    return (delays,)


@app.cell
def _(alt, delays, shown):
    alt.Chart(delays, width=640, height=260).mark_line(point=True).encode(
        x=alt.X("hour:O", title="hour of the scheduled departure, New York"),
        y=alt.Y(f"{shown.value}:Q", title="minutes late"),
        color=alt.Color("origin:N"),
        tooltip=["origin", "hour", "departed", "mean_delay", "worst_p95"],
    )
    return


@app.cell
def _(mo):
    mo.md("""
    ## Does the weather explain it?

    The contract joins each departure with the reading of its airport in the hour before: the view
    `flights_with_weather`. Delays by what was read:
    """)
    return


@app.cell
def _(ask):
    by_weather = ask("""
        with departures as (
            from flights_with_weather where final and dep_delay is not null and weather_event_time is not null
        ), read as (
            select 'wind, mph' as factor, dep_delay, floor(weather_wind_speed / 5) * 5 as value from departures
            union all
            select 'visibility, miles', dep_delay, floor(weather_visib) from departures
            union all
            select 'rain in the hour, tenths of an inch', dep_delay, floor(weather_precip * 10) from departures
        )
        select factor, value, count(*) as departures, avg(dep_delay) as mean_delay from read
        where value is not null group by all having count(*) >= 30 order by all
    """).to_pandas()
    return (by_weather,)


@app.cell
def _(alt, by_weather):
    alt.Chart(by_weather, width=200, height=220).mark_bar().encode(
        x=alt.X("value:O", title=None),
        y=alt.Y("mean_delay:Q", title="minutes late, mean"),
        tooltip=["factor", "value", "departures", "mean_delay"],
    ).facet(column=alt.Column("factor:N", title=None)).resolve_scale(x="independent")
    return


@app.cell
def _(mo):
    mo.md("""
    Averages part clearly, yet how much of the difference between two flights, or between two hours at an airport, does
    a reading account for? The share of the variance (R² of a straight line) says:
    """)
    return


@app.cell
def _(ask):
    share = ask("""
        with departures as (
            select origin, date_trunc('hour', event_time) as hour, dep_delay, weather_wind_speed as wind,
                weather_visib as visibility, weather_precip as rain
            from flights_with_weather where final and dep_delay is not null and weather_event_time is not null
        ), hours as (
            select avg(dep_delay) as dep_delay, avg(wind) as wind, avg(visibility) as visibility, avg(rain) as rain
            from departures group by origin, hour
        )
        select 'flights' as between, count(*) as n, regr_r2(dep_delay, wind) as wind,
            regr_r2(dep_delay, visibility) as visibility, regr_r2(dep_delay, rain) as rain from departures
        union all
        select 'hours at an airport', count(*), regr_r2(dep_delay, wind), regr_r2(dep_delay, visibility),
            regr_r2(dep_delay, rain) from hours
        order by 1
    """).to_pandas()
    return (share,)


@app.cell
def _(alt, share):
    alt.Chart(
        share.melt(["between", "n"], var_name="factor", value_name="r2"), width=480, height=120
    ).mark_bar().encode(
        x=alt.X("r2:Q", title="share of the variance of delays", axis=alt.Axis(format="%")),
        y=alt.Y("factor:N", title=None),
        yOffset="between:N",
        color=alt.Color("between:N", title="between"),
        tooltip=["between", "n", "factor", alt.Tooltip("r2", format=".1%")],
    )
    return


@app.cell
def _(delays, mo, share):
    mo.stop(delays.empty or share["n"].min() == 0, mo.md("Nothing is published yet: `make run` replays a month."))
    worst = delays.loc[delays["mean_delay"].idxmax()]
    r2 = share.set_index("between")[["wind", "visibility", "rain"]].astype(float)
    hours, flights = r2.loc["hours at an airport"], r2.loc["flights"]
    mo.md(f"""
    ## So

    - Flights are latest at {worst["hour"]}:00 at {worst["origin"]}: {worst["mean_delay"]:.0f} minutes in the mean.
    - The reading that explains most is {hours.idxmax()}: {hours.max():.1%} of the differences between hours at an
      airport, {flights[hours.idxmax()]:.1%} of those between single flights. The rest is not in a straight line of it:
      what was late before, which plane is awaited, and the weather elsewhere.
    """)
    return


if __name__ == "__main__":
    app.run()
